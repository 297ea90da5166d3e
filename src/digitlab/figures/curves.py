"""Figures of a metric: by epoch, and by the value of a setting."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from digitlab.figures.layout import create_axes
from digitlab.formatting import format_loss
from digitlab.runs.results import LOSS, Objective


def training_curve(
    history: Sequence[Mapping[str, float]],
    best: int,
    test: float | None,
    baselines: Mapping[str, float],
    heading: str,
    metric: Objective = LOSS,
    label: str = "mean squared error per pixel",
) -> Figure:
    """Draw a metric on training and held-out images by epoch, and on test images with baselines.

    Args:
        history: The metrics of each epoch.
        best: The epoch of the test value.
        test: The value on test images; None if it is unknown.
        baselines: The values of the baselines on test images, by name.
        heading: The title of the figure.
        metric: The metric to draw.
        label: What it measures, for the axis.
    """
    figure, axes = create_axes(7, 4.2, heading)
    epochs = [row["epoch"] for row in history]
    for name, marker in {metric.on("train"): "o", metric.name: "s"}.items():
        values = [row.get(name, np.nan) for row in history]
        if np.isfinite(values).any():
            text = f"{name} (last {format_loss(values[-1])})"
            axes.plot(epochs, values, marker=marker, markersize=4, label=text)
    if test is not None:
        text = f"{metric.on('test')} {format_loss(test)} (epoch {best})"
        axes.plot([best], [test], "k*", markersize=11, label=text)
    for (name, value), style in zip(baselines.items(), cycle(("--", ":", "-.")), strict=False):
        text = f"{name.replace('_', ' ')} {format_loss(value)}"
        axes.axhline(value, color="gray", linestyle=style, label=text)
        # Otherwise the frame would cover a line at the edge.
        axes.update_datalim([(epochs[-1], value)])
    axes.autoscale_view()
    axes.set(xlabel="epoch", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def tick_positions(names: Sequence[str]) -> tuple[dict[str, float], str]:
    """Choose the position of each value of a setting, and the scale of the axis.

    Numbers are placed by their value, on a logarithmic scale if they span a factor of ten or more.
    Choices, and numbers that span such a factor and include 0, are placed at equal distances.
    """
    try:
        numbers = [float(name) for name in names]
    except ValueError:
        numbers = []
    positive = [number for number in numbers if number > 0]
    is_wide = len(positive) > 0 and max(positive) >= 10 * min(positive)
    if not numbers or (is_wide and len(positive) < len(numbers)):
        return {name: float(place) for place, name in enumerate(names)}, "linear"
    return dict(zip(names, numbers, strict=True)), "log" if is_wide else "linear"


def effect(
    lines: Mapping[str, Any],
    names: Sequence[str],
    key: str,
    measure: str,
    baselines: Mapping[str, float],
    direction: str = "min",
) -> Figure:
    """Draw the effect of one setting on a metric.

    Args:
        lines: For each choice of the other settings, a table with the columns `mean` and `std` by
            value of the setting.
        names: The values of the setting.
        key: The name of the setting.
        measure: The name of the metric.
        baselines: Their test values by name. A baseline is drawn if it is near the lines, otherwise
            the title gives it.
        direction: With `max`, the axis says that higher is better.
    """
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    positions, scale = tick_positions(names)
    # Between two choices there is nothing for a line to show.
    has_choices = any(name[:1].isalpha() or name[:1] == "[" for name in names)
    for label, table in lines.items():
        axes.errorbar(
            [positions[value] for value in table.index],
            table["mean"],
            table["std"].fillna(0),
            marker="o",
            linestyle="none" if has_choices else "-",
            capsize=3,
            label=label or None,
        )
    low, high = axes.get_ylim()
    outside = []
    for (name, value), style in zip(baselines.items(), cycle(("--", ":", "-.")), strict=False):
        if low - (high - low) <= value <= high + (high - low):
            axes.axhline(value, color="gray", linestyle=style, label=f"{name} (test)")
        else:
            outside.append(f"{name} {format_loss(value)}")
    axes.set_xscale(scale)
    axes.set_xticks([positions[name] for name in names], names)
    axes.minorticks_off()
    if max(map(len, names)) > 10:
        axes.tick_params(axis="x", rotation=15, labelsize=8)
    has_bars = any(table["std"].gt(0).any() for table in lines.values())
    better = ", higher is better\n" if direction == "max" else " "
    bars = "(bars: spread over seeds)" if has_bars else ""
    axes.set(xlabel=key, ylabel=f"{measure}{better}{bars}".rstrip())
    axes.set_title("off the chart: " + ", ".join(outside) if outside else "", fontsize=9)
    if labels := axes.get_legend_handles_labels()[1]:
        # Inside the axes it would cover points. Two long ones do not fit side by side.
        columns = 2 if max(map(len, labels)) <= 45 else 1
        figure.legend(loc="outside lower center", ncols=columns, fontsize=7)
    return figure
