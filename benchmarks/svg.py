"""Plots as SVG files without a drawing library: panels of lines, dots and whiskers beside one another.

The scales and ticks are the report's (`pipeline.report_charts`); a file of its own needs its own colours and legend.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from pipeline.report_charts import Scale, format_number, nice_ticks

# Okabe-Ito, as in the report: colour-blind readers can tell them apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b3578d", "#c98a00", "#3a9fdc", "#44505e")
GREY = 6
_WIDTH, _HEIGHT = 420, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 34, 46
_LEGEND = 26
_STYLE = (
    "text{font:12px system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans',sans-serif;fill:#44505e}"
    ".title{font-weight:600;font-size:13px;fill:#1a1f27}.grid{stroke:#eaedf0}.axis{stroke:#5b6572}"
)
Shape = Literal["line", "dots", "rings", "whiskers"]


@dataclass(frozen=True)
class Marks:
    """Points of one look.

    Attributes:
        points: (x, y); for `whiskers` (x, low, high).
        colour: Index into `COLOURS`.
        shape: `line` joins them, with small dots; `dots` are filled, `rings` are not.
        faint: Drawn in the background.
    """

    points: Sequence[tuple[float, ...]]
    colour: int
    shape: Shape
    faint: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: Above it.
        x_label: With the unit.
        y_label: With the unit.
        marks: What is drawn, the first below the others.
        x_ticks: Where the x axis is labelled; by default round numbers.
        log_x: Equal factors are equal distances; all x above 0.
        from_zero: The y axis begins at 0.
    """

    title: str
    x_label: str
    y_label: str
    marks: Sequence[Marks]
    x_ticks: Sequence[float] = ()
    log_x: bool = False
    from_zero: bool = False


def figure(panels: Sequence[Panel], legend: Sequence[tuple[str, int]], *, columns: int = 2) -> str:
    """The text of an SVG file.

    Args:
        panels: From left to right, then down.
        legend: (label, colour) pairs, in a line below the panels.
        columns: Panels beside one another.
    """
    columns = min(columns, len(panels))
    width, height = columns * _WIDTH, math.ceil(len(panels) / columns) * _HEIGHT + (_LEGEND if legend else 0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        f'<style>{_STYLE}</style><rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        parts.append(f'<g transform="translate({column * _WIDTH} {row * _HEIGHT})">{_panel(panel)}</g>')
    at = float(_LEFT)
    for label, colour in legend:
        y = height - _LEGEND / 2
        parts.append(
            f'<circle cx="{at:.1f}" cy="{y - 4:.1f}" r="4.5" fill="{COLOURS[colour % len(COLOURS)]}"/>'
            f'<text x="{at + 10:.1f}" y="{y:.1f}">{escape(label)}</text>'
        )
        at += 28 + 6.6 * len(label)
    return "".join([*parts, "</svg>\n"])


def bounds(values: Sequence[float], *, from_zero: bool = False) -> tuple[float, float]:
    """Ends of an axis: all values with a margin of a twentieth; never of length 0."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    low = min(0.0, low) if from_zero else low
    if low == high:
        return low - 0.5, high + 0.5
    margin = (high - low) / 20
    return (low if from_zero and low == 0 else low - margin), high + margin


def _panel(panel: Panel) -> str:
    def place(value: float) -> float:
        return math.log(value) if panel.log_x else value

    xs = [place(point[0]) for marks in panel.marks for point in marks.points]
    ys = [value for marks in panel.marks for point in marks.points for value in point[1:]]
    x = Scale(*bounds(xs), _LEFT, _WIDTH - _RIGHT)
    y = Scale(*bounds(ys, from_zero=panel.from_zero), _HEIGHT - _BOTTOM, _TOP)
    x_ticks = list(panel.x_ticks) or nice_ticks(x.low, x.high, 6)
    parts = [f'<text class="title" x="{_LEFT}" y="18">{escape(panel.title)}</text>']
    for tick in nice_ticks(y.low, y.high, 5):
        at = y(tick)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{format_number(tick)}</text>'
        )
    for tick in x_ticks:
        at = x(place(tick))
        parts.append(
            f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{_HEIGHT - _BOTTOM}" y2="{_HEIGHT - _BOTTOM + 4}"/>'
            f'<text x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 17}" text-anchor="middle">{format_number(tick)}</text>'
        )
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(
        f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{_HEIGHT - _BOTTOM}" y2="{_HEIGHT - _BOTTOM}"/>'
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 10}" text-anchor="middle">'
        f'{escape(panel.x_label)}</text><text transform="translate(14 {middle}) rotate(-90)" '
        f'text-anchor="middle">{escape(panel.y_label)}</text>'
    )
    for marks in panel.marks:
        drawn = [(x(place(point[0])), *(y(value) for value in point[1:])) for point in marks.points]
        parts.append(_draw(marks, drawn))
    return "".join(parts)


def _draw(marks: Marks, points: Sequence[tuple[float, ...]]) -> str:
    colour = COLOURS[marks.colour % len(COLOURS)]
    opacity = ' opacity="0.35"' if marks.faint else ""
    match marks.shape:
        case "whiskers":
            inner = "".join(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{colour}" stroke-width="1.5"/>'
                for x, low, high in points
            )
        case "line":
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            inner = f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
            inner += "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{colour}"/>' for x, y in points)
        case _:
            fill = colour if marks.shape == "dots" else "#fff"
            inner = "".join(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{fill}" stroke="{colour}" stroke-width="1.5"/>'
                for x, y in points
            )
    return f"<g{opacity}>{inner}</g>"
