"""Charts as inline SVG, drawn without any library. All colours come from the page's style sheet."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float | None]

WIDTH, HEIGHT = 380, 216
_TOP, _RIGHT, _BOTTOM = 10, 14, 40
_MAX_POINTS = 300
_MAX_MARKERS = 40
_SMOOTH_FROM = 80


@dataclass(frozen=True)
class Series:
    """A named line; None in a point breaks it."""

    label: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Reference:
    """A horizontal line with a meaning, e.g. the accuracy of a coin."""

    value: float
    label: str


@dataclass(frozen=True)
class Scale:
    """Maps an interval of values to an interval of pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Position of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def nice_ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) inside an interval, about `count` of them."""
    raw = (high - low) / max(count, 1)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    steps = [factor * scale for scale in (magnitude, magnitude * 10) for factor in (1, 2, 5)]
    step = next(step for step in steps if step >= raw * 0.75)
    if whole:
        step = max(1.0, round(step))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def format_number(value: float) -> str:
    """A short text for a tick or a readout."""
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def line_chart(
    series: Sequence[Series], *, x_label: str, y_label: str, title: str, reference: Reference | None = None
) -> str:
    """Lines over steps, with a readout of the last (or, with JavaScript, the pointed-at) values.

    Args:
        series: At most six lines, each with at least one value.
        x_label: What the horizontal axis counts.
        y_label: What the vertical axis measures, with its unit.
        title: Read out by screen readers.
        reference: A line to compare with; left out where it is far from the values.
    """
    shown = [Series(line.label, thin(line.points)) for line in series]
    values = [y for line in shown for _, y in line.points if y is not None]
    steps = [x for line in shown for x, _ in line.points]
    low, high = _y_interval(values)
    if reference is not None and not low <= reference.value <= high:
        if abs(reference.value - _nearest(reference.value, low, high)) > (high - low) * 0.5:
            reference = None
        else:
            low, high = _y_interval([*values, reference.value])
    first, last = (min(steps), max(steps)) if min(steps) < max(steps) else (min(steps) - 1, max(steps) + 1)

    y_ticks = nice_ticks(low, high, 5)
    left = 26 + 7 * max(len(format_number(tick)) for tick in y_ticks)
    x, y = Scale(first, last, left, WIDTH - _RIGHT), Scale(low, high, HEIGHT - _BOTTOM, _TOP)
    parts = _axes(x, y, nice_ticks(first, last, 5, whole=True), y_ticks, x_label, y_label)
    if reference is not None:
        at = y(reference.value)
        above = at - 4 if at > _TOP + 16 else at + 13
        parts.append(
            f'<line class="reference" x1="{left}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text class="reference" x="{WIDTH - _RIGHT}" y="{above:.1f}" text-anchor="end">'
            f"{escape(reference.label)}</text>"
        )
    for index, line in enumerate(shown):
        parts.append(_line(line.points, x, y, index))
    parts.append(f'<line class="cursor" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}" x1="-9" x2="-9"/>')
    data = [{"label": line.label, "points": [[a, b] for a, b in line.points if b is not None]} for line in shown]
    geometry = {"x": [first, last, left, WIDTH - _RIGHT], "series": data, "unit": x_label}
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}" '
        f'data-chart="{escape(json.dumps(geometry, separators=(",", ":")))}">{"".join(parts)}</svg>'
        f'<p class="readout">{_readout(shown, x_label)}</p>'
    )


def reliability_chart(bins: Sequence[tuple[float, float, float]]) -> str:
    """Said probability against observed share, a dot a bin whose area grows with its number of pairs."""
    left = 54
    x, y = Scale(0, 1, left, WIDTH - _RIGHT), Scale(0, 1, HEIGHT - _BOTTOM, _TOP)
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    parts = _axes(x, y, ticks, ticks, "probability that the reward model gives", "share that was right")
    parts.append(
        f'<line class="reference" x1="{x(0):.1f}" y1="{y(0):.1f}" x2="{x(1):.1f}" y2="{y(1):.1f}"/>'
        f'<text class="reference" x="{x(0.36):.1f}" y="{y(0.5):.1f}" text-anchor="end">perfect calibration</text>'
    )
    largest = max((count for _, _, count in bins), default=1) or 1
    points = " ".join(f"{x(said):.1f},{y(seen):.1f}" for said, seen, _ in bins)
    parts.append(f'<polyline class="line s0" points="{points}"/>')
    for said, seen, count in bins:
        radius = 2.5 + 5 * math.sqrt(max(count, 0) / largest)
        parts.append(
            f'<circle class="dot s0" cx="{x(said):.1f}" cy="{y(seen):.1f}" r="{radius:.1f}">'
            f"<title>said {said:.0%}, right {seen:.0%}, {count:.0f} pairs</title></circle>"
        )
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="Calibration of the reward model">{"".join(parts)}</svg>'
    )


def histogram_chart(edges: Sequence[int], counts: Sequence[int], x_label: str, label: str) -> str:
    """Bars of counts over intervals; the last one holds all that is longer, too."""
    left = 54
    most = max(counts, default=1) or 1
    x = Scale(edges[0], edges[-1], left, WIDTH - _RIGHT)
    y = Scale(0, most, HEIGHT - _BOTTOM, _TOP)
    parts = _axes(
        x, y, nice_ticks(edges[0], edges[-1], 5, whole=True), nice_ticks(0, most, 4, whole=True), x_label, "rows"
    )
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        width = max(x(high) - x(low) - 1, 0.5)
        more = " or more" if high == edges[-1] else f" to {high - 1}"
        parts.append(
            f'<rect class="column" x="{x(low) + 0.5:.1f}" y="{y(count):.1f}" width="{width:.1f}" '
            f'height="{y(0) - y(count):.1f}"><title>{low}{more}: {count}</title></rect>'
        )
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def interval_chart(value: float, low: float, high: float, neutral: float, span: float) -> str:
    """A dot with whiskers around a neutral line, for a table cell.

    Args:
        value: The estimate.
        low: Start of its interval.
        high: End of its interval.
        neutral: Where there is no effect.
        span: Half the width of the axis, in units of the value.
    """
    x = Scale(neutral - span, neutral + span, 6, 134)
    return (
        '<svg class="interval" viewBox="0 0 140 22" aria-hidden="true">'
        '<line class="axis" x1="6" x2="134" y1="11" y2="11"/>'
        '<line class="neutral" x1="70" x2="70" y1="2" y2="20"/>'
        f'<line class="whisker" x1="{x(low):.1f}" x2="{x(high):.1f}" y1="11" y2="11"/>'
        f'<circle class="dot s0" cx="{x(value):.1f}" cy="11" r="4.5"/></svg>'
    )


def thin(points: Sequence[Point], limit: int = _MAX_POINTS) -> list[Point]:
    """At most `limit` points: means over runs of equal length, so that a long training keeps its shape."""
    if len(points) <= limit:
        return list(points)
    size = math.ceil(len(points) / limit)
    thinned: list[Point] = []
    for start in range(0, len(points), size):
        chunk = points[start : start + size]
        known = [y for _, y in chunk if y is not None]
        thinned.append((chunk[-1][0], sum(known) / len(known) if known else None))
    return thinned


def smooth(points: Sequence[Point], weight: float = 0.9) -> list[Point]:
    """Exponential moving average without the bias of its start; gaps stay gaps."""
    smoothed: list[Point] = []
    mean = total = 0.0
    for x, y in points:
        if y is None:
            smoothed.append((x, None))
            continue
        mean = weight * mean + (1 - weight) * y
        total = weight * total + (1 - weight)
        smoothed.append((x, mean / total))
    return smoothed


def _axes(
    x: Scale, y: Scale, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str, y_label: str
) -> list[str]:
    parts = []
    for tick in y_ticks:
        at = y(tick)
        parts.append(
            f'<line class="grid" x1="{x.start:.1f}" x2="{x.end:.1f}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text x="{x.start - 6:.1f}" y="{at + 4:.1f}" text-anchor="end">{format_number(tick)}</text>'
        )
    for tick in x_ticks:
        at = x(tick)
        parts.append(
            f'<line class="tick" x1="{at:.1f}" x2="{at:.1f}" y1="{y.start}" y2="{y.start + 4}"/>'
            f'<text x="{at:.1f}" y="{y.start + 17:.1f}" text-anchor="middle">{format_number(tick)}</text>'
        )
    middle = (y.start + y.end) / 2
    parts.append(
        f'<line class="axis" x1="{x.start:.1f}" x2="{x.end:.1f}" y1="{y.start}" y2="{y.start}"/>'
        f'<text class="label" x="{(x.start + x.end) / 2:.1f}" y="{HEIGHT - 7}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
        f'<text class="label" transform="translate(12 {middle:.1f}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    return parts


def _line(points: Sequence[Point], x: Scale, y: Scale, index: int) -> str:
    known = sum(value is not None for _, value in points)
    if known > _SMOOTH_FROM:
        raw, mean = _path(points, x, y), _path(smooth(points), x, y)
        return f'<path class="line raw s{index}" d="{raw}"/><path class="line s{index}" d="{mean}"/>'
    parts = [f'<path class="line s{index}" d="{_path(points, x, y)}"/>']
    if known <= _MAX_MARKERS:
        parts += [
            f'<circle class="dot s{index}" cx="{x(step):.1f}" cy="{y(value):.1f}" r="2.3"/>'
            for step, value in points
            if value is not None
        ]
    return "".join(parts)


def _path(points: Sequence[Point], x: Scale, y: Scale) -> str:
    commands, pen = [], "M"
    for step, value in points:
        if value is None:
            pen = "M"
            continue
        commands.append(f"{pen}{x(step):.1f} {y(value):.1f}")
        pen = "L"
    return "".join(commands)


def _readout(series: Sequence[Series], x_label: str) -> str:
    entries = []
    for index, line in enumerate(series):
        step, value = next((x, y) for x, y in reversed(line.points) if y is not None)
        entries.append(
            f'<span class="key s{index}"></span>{escape(line.label)} <b>{format_number(value or 0)}</b>'
            f'<span class="at"> at {escape(x_label)} {format_number(step)}</span>'
        )
    return " ".join(f'<span class="entry">{entry}</span>' for entry in entries)


def _y_interval(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        margin = abs(low) * 0.1 or 1.0
        return (low - margin, high + margin) if low else (0.0, 1.0)
    margin = (high - low) * 0.06
    if low >= 0 and low < 0.4 * high:
        return 0.0, high + margin
    return low - margin, high + margin


def _nearest(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
