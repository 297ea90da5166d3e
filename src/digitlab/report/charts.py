"""Charts as SVG text: points with the values behind them, lines, bands and reference lines.

A chart is a few kilobytes, takes its colours from the style sheet of the page, and needs no script:
each point has a `<title>`, which browsers show while the pointer rests on it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from markupsafe import Markup

from digitlab.formatting import format_loss

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 72, 14, 20, 46
# The style sheet has so many colours; further series repeat them with dashes.
COLORS = 8
# A range of more than this factor has a logarithmic axis.
WIDE = 30
LONGEST_TICK = 14  # characters
BARS_WIDTH = 420
# Points of a series up to which they are drawn large.
FEW = 12
LETTER = 7  # width of a character


@dataclass(frozen=True)
class Point:
    """A point of a chart, and the text that says what it is."""

    x: float
    y: float
    text: str
    spread: float = 0.0
    """Half the length of its error bar."""
    is_marked: bool = False


@dataclass(frozen=True)
class Series:
    """Points that belong together."""

    name: str
    points: Sequence[Point]
    band: Sequence[tuple[float, float, float]] = ()
    """x, low and high of an area behind the points."""
    has_line: bool = True
    is_faint: bool = False


@dataclass(frozen=True)
class Axis:
    """An axis: its name, and the ticks if they are not at round numbers."""

    label: str
    ticks: Mapping[str, float] = field(default_factory=dict)
    is_log: bool | None = None
    """None chooses by the range of the values."""


class Figure(NamedTuple):
    """A chart and the names of its series, in the order of their colours."""

    svg: Markup
    names: list[str]


class Scale:
    """Maps values to places on the page."""

    def __init__(self, values: Iterable[float], axis: Axis, start: float, end: float) -> None:
        known = [value for value in values if math.isfinite(value)] or [0.0]
        low, high = min(known), max(known)
        positive = low > 0
        self.is_log = positive and (high > WIDE * low if axis.is_log is None else axis.is_log)
        low, high = self._place(low), self._place(high)
        margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
        self.low, self.high = low - margin, high + margin
        self.start, self.end = start, end

    def _place(self, value: float) -> float:
        return math.log10(value) if self.is_log else value

    def __call__(self, value: float) -> float:
        """The coordinate of a value; outside of the range, that of the nearest end."""
        if self.is_log and value <= 0:
            return self.start
        share = (self._place(value) - self.low) / (self.high - self.low)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    def ticks(self, number: int) -> dict[str, float]:
        """About so many round values within the range, by their text."""
        if self.is_log:
            first, last = math.floor(self.low), math.ceil(self.high)
            digits = (1,) if self.high - self.low > 2 else (1, 2, 5)
            decades = range(first, last + 1, max(1, (last - first) // number))
            values = [digit * 10.0**power for power in decades for digit in digits]
            inside = [v for v in values if self.low <= math.log10(v) <= self.high]
            if len(inside) > 1:
                return {format_tick(value): value for value in inside}
        low, high = (10**self.low, 10**self.high) if self.is_log else (self.low, self.high)
        step = round_step((high - low) / number)
        first = math.ceil(low / step)
        last = math.floor(high / step)
        return {format_tick(n * step): n * step for n in range(first, last + 1)}


def round_step(size: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, ... that is not below `size`."""
    power = 10.0 ** math.floor(math.log10(size)) if size > 0 else 1.0
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= size * (1 - 1e-9))


def format_tick(value: float) -> str:
    """A value without the rounding errors of its computation."""
    return f"{value:.6g}"


def draw(
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    references: Mapping[str, float] | None = None,
) -> Markup:
    """Draw a chart.

    Args:
        series: What is drawn, in the order of the colours.
        x: The horizontal axis.
        y: The vertical axis.
        references: Values of y by name, as baselines. One that lies far from all points is named
            above the chart instead.
    """
    points = [point for each in series for point in each.points]
    heights = [p.y + sign * p.spread for p in points for sign in (-1, 1)]
    heights += [height for each in series for _, *ends in each.band for height in ends]
    if points and min(point.y for point in points) > 0:
        # An error bar that reaches below zero does not change the axis.
        heights = [height for height in heights if height > 0]
    near, far = split_references(references or {}, heights)
    columns = Scale([point.x for point in points] + [*x.ticks.values()], x, LEFT, WIDTH - RIGHT)
    rows = Scale([*heights, *near.values()], y, HEIGHT - BOTTOM, TOP)
    parts = [*draw_axes(columns, rows, x, y), *draw_references(near, rows)]
    for number, each in enumerate(series):
        parts += draw_series(each, number, columns, rows)
    if far:
        text = "off the chart: " + ", ".join(f"{k} {format_loss(v)}" for k, v in far.items())
        parts.append(Markup('<text class="ref" x="{}" y="{}">{}</text>').format(LEFT, 12, text))
    label = f"{y.label} by {x.label}"
    opening = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">')
    return opening.format(WIDTH, HEIGHT, label) + Markup("").join(parts) + Markup("</svg>")


def split_references(
    references: Mapping[str, float], heights: Sequence[float]
) -> tuple[dict[str, float], dict[str, float]]:
    """Split reference values into those near the points and those far from them."""
    known = [height for height in heights if math.isfinite(height)]
    if not known:
        return {}, dict(references)
    low, high = min(known), max(known)
    room = high - low or 0.5 * abs(high)
    near = {k: v for k, v in references.items() if low - room <= v <= high + room}
    return near, {k: v for k, v in references.items() if k not in near}


def draw_axes(columns: Scale, rows: Scale, x: Axis, y: Axis) -> list[Markup]:
    """Draw the grid, the ticks and the names of the axes."""
    parts = []
    for name, value in (y.ticks or rows.ticks(8)).items():
        place = round(rows(value), 1)
        line = Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>')
        parts.append(line.format(LEFT, WIDTH - RIGHT, place, place))
        text = Markup('<text class="tick end" x="{}" y="{}">{}</text>')
        parts.append(text.format(LEFT - 7, place + 4, name))
    ticks = x.ticks or columns.ticks(8)
    end = 0.0
    for name, value in sorted(ticks.items(), key=lambda tick: tick[1]):
        short = name if len(name) <= LONGEST_TICK else f"{name[: LONGEST_TICK - 1]}…"
        place, half = columns(value), LETTER * len(short) / 2
        # A name that would overlap the one before is left out.
        if place - half > end:
            text = Markup('<text class="tick mid" x="{:.1f}" y="{}">{}</text>')
            parts.append(text.format(place, HEIGHT - BOTTOM + 18, short))
            end = place + half + LETTER / 2
    middle = (LEFT + WIDTH - RIGHT) / 2
    label = Markup('<text class="label mid" x="{}" y="{}">{}</text>')
    parts.append(label.format(middle, HEIGHT - 8, x.label))
    label = Markup('<text class="label mid" transform="translate(13 {}) rotate(-90)">{}</text>')
    parts.append(label.format((TOP + HEIGHT - BOTTOM) / 2, y.label))
    return parts


def draw_references(references: Mapping[str, float], rows: Scale) -> list[Markup]:
    """Draw horizontal lines with their names."""
    parts = []
    for name, value in references.items():
        place = round(rows(value), 1)
        line = Markup('<line class="refline" x1="{}" x2="{}" y1="{}" y2="{}"/>')
        parts.append(line.format(LEFT, WIDTH - RIGHT, place, place))
        text = Markup('<text class="ref end" x="{}" y="{}">{} {}</text>')
        parts.append(text.format(WIDTH - RIGHT - 2, place - 4, name, format_loss(value)))
    return parts


def draw_series(series: Series, number: int, columns: Scale, rows: Scale) -> list[Markup]:
    """Draw the band, the line, the error bars and the points of a series."""
    color = f"c{number % COLORS}"
    if number >= COLORS:
        color += " dashed"
    if series.is_faint:
        color += " faint"
    parts = []
    if series.band:
        upper = [(columns(x), rows(high)) for x, _, high in series.band]
        lower = [(columns(x), rows(low)) for x, low, _ in reversed(series.band)]
        band = Markup('<path class="band {}" d="{}Z"/>')
        parts.append(band.format(color, make_path(upper + lower)))
    radius = 4 if len(series.points) <= FEW else 2.5
    places = [(columns(point.x), rows(point.y)) for point in series.points]
    if series.has_line and len(places) > 1:
        parts.append(Markup('<path class="line {}" d="{}"/>').format(color, make_path(places)))
    for point, (x, y) in zip(series.points, places, strict=True):
        if point.spread:
            ends = rows(point.y - point.spread), rows(point.y + point.spread)
            bar = Markup('<line class="bar {}" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>')
            parts.append(bar.format(color, x, x, *ends))
        size, kind = (6, "point marked") if point.is_marked else (radius, "point")
        circle = Markup(
            '<circle class="{} {}" cx="{:.1f}" cy="{:.1f}" r="{}"><title>{}</title></circle>'
        )
        parts.append(circle.format(kind, color, x, y, size, point.text))
    return parts


def make_path(places: Sequence[tuple[float, float]]) -> str:
    """The `d` of a path through some places."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)


def draw_bars(values: Mapping[str, float]) -> Markup:
    """Draw values of one metric as bars that begin at zero, the first one in colour."""
    most = max((abs(value) for value in values.values()), default=0.0) or 1.0
    names = {name: name if len(name) <= 30 else f"{name[:29]}…" for name in values}
    start = LETTER * max((len(name) for name in names.values()), default=0) + 10
    room = BARS_WIDTH - start - 75
    parts = []
    for number, (name, value) in enumerate(values.items()):
        y = 26 * number
        color = "c0" if number == 0 else "other"
        text = Markup('<text class="bar-name" x="0" y="{}">{}</text>')
        parts.append(text.format(y + 16, names[name]))
        width = round(room * abs(value) / most, 1)
        bar = Markup('<rect class="bar-value {}" x="{}" y="{}" width="{}" height="14" rx="3"/>')
        parts.append(bar.format(color, start, y + 5, width))
        text = Markup('<text class="bar-number" x="{}" y="{}">{}</text>')
        parts.append(text.format(start + 8 + width, y + 16, format_loss(value)))
    label = "; ".join(f"{name} {format_loss(value)}" for name, value in values.items())
    opening = Markup('<svg class="bars" viewBox="0 0 {} {}" role="img" aria-label="{}">')
    return (
        opening.format(BARS_WIDTH, 26 * len(values), label)
        + Markup("").join(parts)
        + Markup("</svg>")
    )
