"""Panels of points: the course of a search, and its score against each setting."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import NamedTuple

from matplotlib.figure import Figure

from digitlab.formatting import format_loss

# Panels side by side.
COLUMNS = 2


@dataclass(frozen=True)
class Points:
    """Points that belong together, each with a text that says what it is."""

    name: str
    has_line: bool = True
    x: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def add(self, x: float, y: float, text: str) -> None:
        """Add a point."""
        self.x.append(x)
        self.y.append(y)
        self.texts.append(text)


class Panel(NamedTuple):
    """Points against one quantity."""

    label: str
    series: list[Points]
    # Their places by name; without any they are at round numbers.
    ticks: dict[str, float]
    # None chooses by the range of the values.
    is_log: bool | None


def panels(drawn: Sequence[Panel], measure: str, references: Mapping[str, float]) -> Figure:
    """Draw panels in rows.

    Args:
        drawn: What each panel shows.
        measure: The name of the vertical axes.
        references: Values of it by name; one that lies far from all points is left out.
    """
    rows = ceil(len(drawn) / COLUMNS)
    figure = Figure(figsize=(9, 3.2 * rows), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, squeeze=False).flat
    for panel, axes in zip(drawn, grid, strict=False):
        values = [number for points in panel.series for number in points.x]
        for points in panel.series:
            style = {"marker": "o", "markersize": 3, "linestyle": "-" if points.has_line else ""}
            drawstyle = "steps-post" if points.has_line else "default"
            axes.plot(points.x, points.y, drawstyle=drawstyle, label=points.name, **style)
        low, high = axes.get_ylim()
        for number, (name, value) in enumerate(references.items()):
            if low <= value <= high:
                label = f"{name} {format_loss(value)}"
                axes.axhline(value, color="gray", linestyle=("--", ":")[number % 2], label=label)
        is_wide = bool(values) and min(values) > 0 and max(values) > 30 * min(values)
        if is_wide if panel.is_log is None else panel.is_log:
            axes.set_xscale("log")
        if panel.ticks:
            axes.set_xticks([*panel.ticks.values()], [*panel.ticks])
            axes.minorticks_off()
        axes.set(xlabel=panel.label, ylabel=measure)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    for axes in [*grid]:
        axes.set_axis_off()
    return figure
