"""Axes and files of `benchmarks.svg`."""

import re
import xml.etree.ElementTree as ET

from benchmarks.svg import Marks, Panel, bounds, figure


def test_an_axis_holds_its_values_with_a_margin() -> None:
    assert bounds([2.0, 4.0]) == (1.9, 4.1)
    assert bounds([2.0, 4.0], from_zero=True) == (0.0, 4.2)
    assert bounds([-1.0, 1.0], from_zero=True) == (-1.1, 1.1)
    assert bounds([3.0, 3.0]) == (2.5, 3.5)
    assert bounds([]) == (0.0, 1.0)


def positions(drawn: str) -> list[float]:
    return [float(value) for value in re.findall(r'<circle cx="([\d.]+)"', drawn)]


def test_equal_factors_are_equal_distances_on_a_logarithmic_axis() -> None:
    marks = [Marks([(8.0, 1.0), (32.0, 2.0), (128.0, 3.0)], 0, "dots")]
    first, second, third = positions(figure([Panel("t", "x", "y", marks, x_ticks=(8, 32, 128), log_x=True)], []))
    assert abs((second - first) - (third - second)) < 0.11  # positions have one decimal
    plain = positions(figure([Panel("t", "x", "y", marks)], []))
    assert plain[2] - plain[1] > 3 * (plain[1] - plain[0])


def test_the_file_is_xml_whatever_the_labels_are() -> None:
    panel = Panel("a < b", "x & y", '"y"', [Marks([(0.0, 1.0, 2.0)], 1, "whiskers"), Marks([], 0, "line")])
    root = ET.fromstring(figure([panel, panel, panel], [("<sft>", 0)]))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("a < b") == 3
    assert "<sft>" in texts
    assert root.get("viewBox") == "0 0 840 626"  # two panels beside one another, the third below, and the legend
