"""Accuracy on a benchmark, by arithmetic."""

import pytest

from stages.reward_model.bench_table import SECTIONS, bench_table


def test_by_subset_with_ties_and_lengths() -> None:
    found = bench_table(["b", "a", "a", "a", "a"], [1.0, 2.0, -1.0, 0.0, 3.0], [5, -1, 0, 1, 1])
    assert [(row.name, row.pairs, row.accuracy, row.ties, row.length_baseline) for row in found.subsets] == [
        ("b", 1, 1.0, 0, 1.0),
        ("a", 4, 0.625, 1, 0.625),
    ]
    assert (found.whole.pairs, found.whole.accuracy, found.whole.ties) == (5, 0.7, 1)
    assert found.mean == pytest.approx((1.0 + 0.625) / 2)
    assert found.sections == {} and found.score is None
    # Wilson's interval for 5 of 8 is wider than that for 625 of 1000; of 4 with 2.5 by its formula:
    z2 = 1.959964**2
    centre, half = (0.625 + z2 / 8) / (1 + z2 / 4), (z2 * (0.625 * 0.375 / 4 + z2 / 64)) ** 0.5 / (1 + z2 / 4)
    assert (found.subsets[1].low, found.subsets[1].high) == pytest.approx((centre - half, centre + half))


def test_sections_count_pairs_but_mathematics_as_much_as_code() -> None:
    sizes = dict.fromkeys((name for own in SECTIONS.values() for name in own), 2) | {"math-prm": 10, "hep-go": 6}
    right = {"math-prm": 0, "hep-go": 6, "alpacaeval-easy": 0}  # of the others all but one
    subsets = [name for name, size in sizes.items() for _ in range(size)]
    differences = [
        1.0 if number < right.get(name, size - 1) else -1.0 for name, size in sizes.items() for number in range(size)
    ]
    found = bench_table(subsets, differences, [0] * len(subsets))
    # Reasoning: mathematics 0, code (6 + 5 of 10) of 16 pairs; half of each.
    assert found.sections == pytest.approx(
        {"Chat": 4 / 10, "Chat Hard": 0.5, "Safety": 0.5, "Reasoning": 0.5 * (11 / 16)}
    )
    assert found.score == pytest.approx((0.4 + 0.5 + 0.5 + 11 / 32) / 4)
    assert [row.name for row in found.subsets] == [name for own in SECTIONS.values() for name in own]
    shuffled = bench_table(subsets[::-1], differences[::-1], [0] * len(subsets))
    assert [row.name for row in shuffled.subsets] == [row.name for row in found.subsets]
    part = [row for row, name in enumerate(subsets) if name != "donotanswer"]
    less = bench_table([subsets[row] for row in part], [differences[row] for row in part], [0] * len(part))
    assert sorted(less.sections) == ["Chat", "Chat Hard", "Reasoning"] and less.score is None
