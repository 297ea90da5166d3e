"""Draw figures from arrays, without files, trainer or pyplot state."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from math import ceil
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Affine2D

from digitlab.formatting import format_loss
from digitlab.runs.results import LOSS, Objective

# The names of MNIST's classes, the default of the figures.
DIGITS = tuple("0123456789")
# The most letters of a class name that a figure shows, and the most names on an axis.
LETTERS, NAMES = 12, 64


def short(name: str) -> str:
    """A class name, cut to the letters that a figure has room for."""
    return name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…"


def render(figure: Figure) -> np.ndarray:
    """Draw the figure into an array, uint8 (H, W, 3)."""
    figure.set_dpi(110)
    canvas = FigureCanvasAgg(figure)
    # Hinting, the fitting of letters to pixels, takes a fifth of the time.
    with rc_context({"text.hinting": "none"}):
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def heading_height(heading: str) -> float:
    """The height that the lines of a heading need above a picture, in inches."""
    return 0.2 + 0.2 * len(heading.splitlines())


def create_axes(
    width: float, height: float, heading: str, right: float = 0.97, left: float = 0.9
) -> tuple[Figure, Axes]:
    """Create a figure with one pair of axes and margins for the title, labels and ticks.

    Matplotlib's own layout of margins and title takes longer than the drawing.

    Args:
        width: In inches.
        height: In inches.
        heading: The title.
        right: The right edge of the axes, as a share of the width.
        left: The margin for the label and the ticks of the y axis, in inches.
    """
    figure = Figure(figsize=(width, height))
    top = 1 - heading_height(heading) / height
    figure.subplots_adjust(left=left / width, right=right, bottom=0.55 / height, top=top)
    axes = figure.subplots()
    axes.set_title(heading, y=1.0)
    return figure, axes


def image_grid(
    images: np.ndarray,
    titles: Sequence[str] | None,
    columns: int,
    heading: str,
    names: Sequence[str] = (),
) -> Figure:
    """Draw images in rows.

    All of them are one picture; separate pictures would take three times as long to draw.

    Args:
        images: (N, H, W) in [0, 1], drawn white on black, or (N, H, W, 3) in colour.
        titles: A text below each image.
        columns: The number of images in a row.
        heading: The title of the figure.
        names: A text before each row.
    """
    rows, (height, width) = ceil(len(images) / columns), images.shape[1:3]
    # The size of a cell and the layout of the figure, in pixels of the images and in inches. An
    # image is as wide as one of MNIST's, however many pixels it has.
    unit = width / 28
    gap = max(1, round(2 * unit))
    cell_width = width + gap
    cell_height = height + (round(14 * unit) if titles else gap)
    left, share = (0.05, 0.94) if names else (0.01, 0.98)
    picture_width = max(4.5, 1.25 * columns)
    picture_height = 1.25 * cell_height / cell_width * rows * share + 0.05
    figure = Figure(figsize=(picture_width, picture_height + heading_height(heading)))
    top = picture_height / (picture_height + heading_height(heading))
    axes = figure.add_axes((left, 0, share, top))
    axes.axis("off")
    canvas = np.ones((rows * cell_height, columns * cell_width, *images.shape[3:]))
    for i, image in enumerate(images):
        y, x = i // columns * cell_height, i % columns * cell_width
        canvas[y : y + height, x : x + width] = image
        if titles:
            below = y + height + unit
            axes.text(x + width / 2, below, titles[i], ha="center", va="top", fontsize=8)
    for row, name in enumerate(names):
        y = row * cell_height + height / 2
        axes.text(-3 * unit, y, name, ha="right", va="center", rotation=90, fontsize=8)
    extent = (0, columns * cell_width, rows * cell_height, 0)
    axes.imshow(canvas.clip(0, 1), cmap="gray", vmin=0, vmax=1, extent=extent)
    axes.set_anchor("N")
    figure.suptitle(heading, fontsize=11, y=1 - 0.08 / figure.get_figheight())
    return figure


def centers(
    images: np.ndarray, confusion: np.ndarray, heading: str, classes: Sequence[str] = DIGITS
) -> Figure:
    """Draw centres with their number of images and their commonest class.

    Matplotlib cannot draw a figure of thousands; only the first hundred are drawn.

    Args:
        images: The centres, (K, H, W) or (K, H, W, 3) in [0, 1].
        confusion: The number of images by class and centre, (classes, K).
        heading: The title of the figure.
        classes: The names of the classes.
    """
    titles, most = [], 100
    if len(images) > most:
        heading = f"{heading}\nthe first {most} of {len(images):,}"
    images, confusion = images[:most], confusion[:, :most]
    for k, column in enumerate(confusion.T):
        total = int(column.sum())
        share = "won no image"
        if total:
            name = short(classes[column.argmax()])
            what = f"show a {name}" if tuple(classes) == DIGITS else name
            share = f"{column.max() / total:.0%} {what}"
        titles.append(f"centre {k}\n{total:,} images\n{share}")
    columns = 10 if len(images) > 20 else min(5, len(images))
    return image_grid(images, titles, columns, heading)


def write_numbers(figure: Figure, axes: Axes, table: np.ndarray, colors: np.ndarray) -> None:
    """Write each number of a table into its cell.

    All digits are one collection; texts would take ten times as long to draw.

    Args:
        figure: The figure of the axes.
        axes: Where to write; the data coordinates are (column, row).
        table: Integers >= 0, (rows, columns).
        colors: The color of each number, (rows, columns).
    """
    size = 8  # points
    shapes = [TextPath((0, 0), character, size=size) for character in "0123456789"]
    # The advance width, which all digits share.
    width = TextPath((0, 0), "00", size=size).get_extents().x1 - shapes[0].get_extents().x1
    glyphs, cells = [], []
    for (row, column), number in np.ndenumerate(table):
        digits = [int(character) for character in str(number)]
        for place, digit in enumerate(digits):
            offset = Affine2D().translate((place - len(digits) / 2) * width, -0.26 * size)
            glyphs.append(shapes[digit].transformed(offset))
            cells.append((row, column))
    rows, columns = np.transpose(cells)
    collection = PathCollection(
        glyphs,
        offsets=np.column_stack([columns, rows]),
        offset_transform=axes.transData,
        facecolors=colors[rows, columns],
        linewidths=0,
    )
    # From points to pixels.
    collection.set_transform(Affine2D().scale(1 / 72) + figure.dpi_scale_trans)
    axes.add_collection(collection, autolim=False)


def confusion_matrix(
    confusion: np.ndarray, heading: str, classes: Sequence[str] = DIGITS
) -> Figure:
    """Draw the number of images by class and centre (classes, K), shaded by the share of the class.

    The numbers are written into the cells of 20 centres or fewer.
    """
    n, k = confusion.shape
    kind = "digit" if tuple(classes) == DIGITS else "class"
    is_large = k > 20
    width = max(5.0, 0.62 * min(k, 20) + 1.6)
    names = [short(name) for name in classes]
    left = 0.8 + 0.07 * max(map(len, names)) + 0.03
    height = max(5.8, 0.24 * min(n, NAMES) + 1.2)
    figure, axes = create_axes(width, height, heading, right=1.0 if is_large else 0.97, left=left)
    share = confusion / np.maximum(1, confusion.sum(1, keepdims=True))
    vmax = share.max() if is_large else 1
    picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=vmax, aspect="auto")
    if is_large:
        figure.colorbar(picture, label=f"share of the {kind}'s images")
    else:
        write_numbers(figure, axes, confusion, np.where(share > 0.5, "white", "black"))
    axes.set(xlabel="centre", ylabel=kind)
    if n <= NAMES:
        axes.set_yticks(range(n), names)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if not is_large:
        axes.set_xticks(range(k))
    return figure


def reconstructions(originals: np.ndarray, restored: np.ndarray, heading: str) -> Figure:
    """Draw images in rows of ten, with their reconstructions in a row below each.

    Both are (N, H, W) or (N, H, W, 3). An incomplete last row is not drawn.
    """
    n = min(10, len(originals))
    rows = []
    for i in range(0, len(originals) - n + 1, n):
        rows += [originals[i : i + n], restored[i : i + n]]
    names = ["original", "restored"] * (len(rows) // 2)
    return image_grid(np.concatenate(rows), None, n, heading, names)


def latents(
    z: np.ndarray, labels: np.ndarray, heading: str, classes: Sequence[str] = DIGITS
) -> Figure:
    """Draw latents (N, Z) by their first two principal components, coloured by class (N,)."""
    n, names = len(classes), [short(name) for name in classes]
    # Room for the names next to the colours.
    width = 6.6 + 0.08 * (max(map(len, names)) - 1)
    height = 5.6 if n <= 20 else 6.6
    figure, axes = create_axes(width, height, heading, right=6.6 / width)
    centered = z - z.mean(0)
    if z.shape[1] > 2:
        variances, vectors = np.linalg.eigh(centered.T @ centered)
        share = variances[-2:].sum() / max(variances.sum(), 1e-12)
        plane = centered @ vectors[:, :-3:-1]
        xlabel = f"principal component 1 (it and 2 hold {share:.0%} of the variance)"
        ylabel = "principal component 2"
    else:
        plane, xlabel, ylabel = z, "z[0]", "z[1]"
    x = plane[:, 0]
    y = plane[:, 1] if plane.shape[1] > 1 else np.zeros(len(plane))
    # Ten or twenty colours that differ; those of more classes are neighbours in a rainbow.
    if n <= 20:
        cycle: Any = colormaps["tab10" if n <= 10 else "tab20"]
        colors: Colormap = ListedColormap(cycle.colors[:n])
    else:
        colors = colormaps["turbo"].resampled(n)
    dots = axes.scatter(x, y, c=labels, s=5, cmap=colors, vmin=-0.5, vmax=n - 0.5, linewidths=0)
    bar = figure.colorbar(dots, label="digit" if tuple(classes) == DIGITS else "class")
    if n <= NAMES:
        bar.set_ticks(range(n), labels=names)
        bar.ax.tick_params(labelsize=10 if n <= 20 else 300 / max(n, 38))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set(xlabel=xlabel, ylabel=ylabel)
    return figure


def shapes(rows: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]], heading: str) -> Figure:
    """Draw the stages of an autoencoder: encoder downwards, decoder upwards, inverses side by side.

    Args:
        rows: Each stage's name, its shape towards the latent, and its shape towards the image.
        heading: The title of the figure.
    """

    def format_shape(shape: tuple[int, ...]) -> str:
        return " x ".join(map(str, shape))

    figure = Figure(figsize=(7.4, 0.75 * len(rows) + 1.3), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 10), ylim=(-len(rows) - 0.35, 0.95), title=heading)
    axes.axis("off")
    levels = [rows[0][2], *(inner for _, inner, _ in rows)]
    box = {"boxstyle": "round,pad=0.35", "fc": "white", "ec": "black"}
    arrow = {"arrowstyle": "-|>", "color": "black", "shrinkA": 13, "shrinkB": 13}
    left, right, middle = 2.4, 7.6, 5.0
    axes.text(left, 0.55, "encoder", ha="center", weight="bold")
    axes.text(right, 0.55, "decoder", ha="center", weight="bold")
    last = len(rows)
    for level, shape in enumerate(levels):
        is_latent = level == last
        color = "#ffe9b3" if is_latent else "#dbe9f6"
        for x in (middle,) if is_latent else (left, right):
            style = box | {"fc": color}
            axes.text(x, -level, format_shape(shape), ha="center", va="center", bbox=style)
    for level, (name, _, _) in enumerate(rows):
        is_lowest = level + 1 == last
        # Both sides meet at the latent.
        below_left, below_right = (middle, middle) if is_lowest else (left, right)
        axes.annotate("", (below_left, -level - 1), (left, -level), arrowprops=arrow)
        axes.annotate("", (right, -level), (below_right, -level - 1), arrowprops=arrow)
        y = -level - 0.5
        axes.text(left - 0.5, y, name, ha="right", va="center", fontsize=9)
        axes.text(right + 0.5, y, f"inverse of {name}", ha="left", va="center", fontsize=9)
        if not is_lowest:
            axes.plot([left + 0.4, right - 0.4], [y] * 2, ":", color="lightgray", zorder=0)
    return figure


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
    if axes.get_legend_handles_labels()[1]:
        # Inside the axes it would cover points.
        figure.legend(loc="outside lower center", ncols=2, fontsize=7)
    return figure
