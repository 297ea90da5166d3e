"""Tensors in, Figure out: no disk, no trainer, no pyplot state."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Affine2D

from digitlab.formatting import format_loss


def pixels(figure: Figure) -> np.ndarray:
    """The figure drawn: uint8 (H, W, 3)."""
    figure.set_dpi(110)
    canvas = FigureCanvasAgg(figure)
    with rc_context({"text.hinting": "none"}):  # to fit letters to pixels takes a fifth of the drawing
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def band(heading: str) -> float:
    """The inches above a picture that its heading's lines need."""
    return 0.2 + 0.2 * len(heading.splitlines())


def sheet(width: float, height: float, heading: str, right: float = 0.97) -> tuple[Figure, Axes]:
    """A figure of so many inches with one pair of axes, in margins for the title, labels and ticks.

    Matplotlib's own search for the margins and for the title's height takes longer than the drawing.
    """
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(left=0.9 / width, right=right, bottom=0.55 / height, top=1 - band(heading) / height)
    axes = figure.subplots()
    axes.set_title(heading, y=1.0)
    return figure, axes


def image_grid(
    images: np.ndarray, titles: Sequence[str] | None, columns: int, heading: str, names: Sequence[str] = ()
) -> Figure:
    """Images (N, 28, 28) in [0, 1] in rows of `columns`, white on black, a title under each, `names` before the rows.

    All in one picture: one an image would take three times as long to draw.
    """
    rows, edge = ceil(len(images) / columns), images.shape[1]
    wide, high = edge + 2, edge + 14 if titles else edge + 2
    left, share = (0.05, 0.94) if names else (0.01, 0.98)
    width, height = max(4.5, 1.25 * columns), 1.25 * high / wide * rows * share + 0.05
    figure = Figure(figsize=(width, height + band(heading)))
    axes = figure.add_axes((left, 0, share, height / (height + band(heading))))
    axes.axis("off")
    paper = np.ones((rows * high, columns * wide))
    for i, image in enumerate(images):
        y, x = i // columns * high, i % columns * wide
        paper[y : y + edge, x : x + edge] = image
        if titles:
            axes.text(x + edge / 2, y + edge + 1, titles[i], ha="center", va="top", fontsize=8)
    for row, name in enumerate(names):
        axes.text(-3, row * high + edge / 2, name, ha="right", va="center", rotation=90, fontsize=8)
    axes.imshow(paper, cmap="gray", vmin=0, vmax=1, extent=(0, columns * wide, rows * high, 0))
    axes.set_anchor("N")
    figure.suptitle(heading, fontsize=11, y=1 - 0.08 / figure.get_figheight())
    return figure


def centers(images: np.ndarray, confusion: np.ndarray, heading: str) -> Figure:
    """The centres (K, 28, 28), each with its number of images and the digit that most of them show; a hundred of many.

    A sheet of thousands is more than matplotlib draws.
    """
    titles, most = [], 100
    if len(images) > most:
        heading = f"{heading}\nthe first {most} of {len(images):,}"
    images, confusion = images[:most], confusion[:, :most]
    for k, column in enumerate(confusion.T):
        total = int(column.sum())
        share = f"{column.max() / total:.0%} show a {column.argmax()}" if total else "won no image"
        titles.append(f"centre {k}\n{total:,} images\n{share}")
    return image_grid(images, titles, 10 if len(images) > 20 else min(5, len(images)), heading)


def write_numbers(figure: Figure, axes: Axes, table: np.ndarray, colors: np.ndarray) -> None:
    """Write each number of a table (rows, columns) of integers >= 0 into its cell, in that cell's color.

    All digits are one collection: as texts they would take ten times as long to draw.
    """
    size = 8  # points
    shapes = [TextPath((0, 0), sign, size=size) for sign in "0123456789"]
    width = TextPath((0, 0), "00", size=size).get_extents().x1 - shapes[0].get_extents().x1  # every digit's
    glyphs, cells = [], []
    for (row, column), number in np.ndenumerate(table):
        signs = [int(sign) for sign in str(number)]
        for place, sign in enumerate(signs):
            middle = Affine2D().translate((place - len(signs) / 2) * width, -0.26 * size)
            glyphs.append(shapes[sign].transformed(middle))
            cells.append((row, column))
    rows, columns = np.transpose(cells)
    drawn = PathCollection(
        glyphs,
        offsets=np.column_stack([columns, rows]),
        offset_transform=axes.transData,
        facecolors=colors[rows, columns],
        linewidths=0,
    )
    drawn.set_transform(Affine2D().scale(1 / 72) + figure.dpi_scale_trans)  # points to pixels
    axes.add_collection(drawn, autolim=False)


def confusion_matrix(confusion: np.ndarray, heading: str) -> Figure:
    """Digits by centres (10, K), the counts written in, shaded by the share of the digit."""
    k = confusion.shape[1]
    figure, axes = sheet(max(5.0, 0.62 * min(k, 20) + 1.6), 5.8, heading, right=1.0 if k > 20 else 0.97)
    share = confusion / np.maximum(1, confusion.sum(1, keepdims=True))
    picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=1 if k <= 20 else share.max(), aspect="auto")
    if k > 20:
        figure.colorbar(picture, label="share of the digit's images")
    else:
        write_numbers(figure, axes, confusion, np.where(share > 0.5, "white", "black"))
    axes.set(xlabel="centre", ylabel="digit")
    axes.set_yticks(range(10))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if k <= 20:
        axes.set_xticks(range(k))
    return figure


def reconstructions(originals: np.ndarray, restored: np.ndarray, heading: str) -> Figure:
    """Images (N, 28, 28) in rows of ten, each row of originals over the row of their reconstructions.

    What is left over of a last row is not shown.
    """
    n = min(10, len(originals))
    rows = [row for i in range(0, len(originals) - n + 1, n) for row in (originals[i : i + n], restored[i : i + n])]
    names = ["original", "restored"] * (len(rows) // 2)
    return image_grid(np.concatenate(rows), None, n, heading, names)


def latents(z: np.ndarray, digits: np.ndarray, heading: str) -> Figure:
    """Latents (N, Z) in the plane of their two largest principal components, coloured by digit."""
    figure, axes = sheet(6.6, 5.6, heading, right=1.0)
    centered = z - z.mean(0)
    if z.shape[1] > 2:
        variances, vectors = np.linalg.eigh(centered.T @ centered)
        share = variances[-2:].sum() / max(variances.sum(), 1e-12)
        plane = centered @ vectors[:, :-3:-1]
        across, up = f"principal component 1 (it and 2 hold {share:.0%} of the variance)", "principal component 2"
    else:
        plane, across, up = z, "z[0]", "z[1]"
    second = plane[:, 1] if plane.shape[1] > 1 else np.zeros(len(plane))
    dots = axes.scatter(plane[:, 0], second, c=digits, s=5, cmap="tab10", vmin=-0.5, vmax=9.5, linewidths=0)
    figure.colorbar(dots, ticks=range(10), label="digit")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set(xlabel=across, ylabel=up)
    return figure


def shapes(rows: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]], heading: str) -> Figure:
    """The stages (name, shape inside, shape outside): encoder downwards, decoder upwards, partners on one line."""

    def words(shape: tuple[int, ...]) -> str:
        return " x ".join(map(str, shape))

    figure = Figure(figsize=(7.4, 0.75 * len(rows) + 1.3), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 10), ylim=(-len(rows) - 0.35, 0.95), title=heading)
    axes.axis("off")
    levels = [rows[0][2], *(inside for _, inside, _ in rows)]
    box = {"boxstyle": "round,pad=0.35", "fc": "white", "ec": "black"}
    arrow = {"arrowstyle": "-|>", "color": "black", "shrinkA": 13, "shrinkB": 13}
    left, right, middle = 2.4, 7.6, 5.0
    axes.text(left, 0.55, "encoder", ha="center", weight="bold")
    axes.text(right, 0.55, "decoder", ha="center", weight="bold")
    last = len(rows)
    for level, shape in enumerate(levels):
        latent = level == last
        for x in (middle,) if latent else (left, right):
            color = "#ffe9b3" if latent else "#dbe9f6"
            axes.text(x, -level, words(shape), ha="center", va="center", bbox=box | {"fc": color})
    for level, (name, _, _) in enumerate(rows):
        bottom = level + 1 == last
        down, up = (middle, -level - 1) if bottom else (left, -level - 1), (middle if bottom else right, -level - 1)
        axes.annotate("", down, (left, -level), arrowprops=arrow)
        axes.annotate("", (right, -level), up, arrowprops=arrow)
        axes.text(left - 0.5, -level - 0.5, name, ha="right", va="center", fontsize=9)
        axes.text(right + 0.5, -level - 0.5, f"inverse of {name}", ha="left", va="center", fontsize=9)
        if not bottom:
            axes.plot([left + 0.4, right - 0.4], [-level - 0.5] * 2, ":", color="lightgray", zorder=0)
    return figure


def loss(
    history: Sequence[Mapping[str, float]], best: int, test: float, baselines: Mapping[str, float], heading: str
) -> Figure:
    """Training and validation loss by epoch, the test loss of the epoch `best`, and the baselines to beat."""
    figure, axes = sheet(7, 4.2, heading)
    epochs = [row["epoch"] for row in history]
    for name, marker in (("train/loss", "o"), ("val/loss", "s")):
        values = [row.get(name, np.nan) for row in history]
        if np.isfinite(values).any():
            label = f"{name} (last {format_loss(values[-1])})"
            axes.plot(epochs, values, marker=marker, markersize=4, label=label)
    label = f"test/loss {format_loss(test)} (epoch {best})"
    axes.plot([best], [test], "k*", markersize=11, label=label)
    for (name, value), style in zip(baselines.items(), ("--", ":", "-."), strict=False):
        label = f"{name.replace('_', ' ')} {format_loss(value)}"
        axes.axhline(value, color="gray", linestyle=style, label=label)
        axes.update_datalim([(epochs[-1], value)])  # else a line at the edge would lie under the frame
    axes.autoscale_view()
    axes.set(xlabel="epoch", ylabel="mean squared error per pixel")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def places(names: Sequence[str]) -> tuple[dict[str, float], str]:
    """Where each value of a setting stands, and on which scale: numbers at their distance, by factors from ten upwards.

    Choices, and numbers over several factors of ten that begin with 0, stand one beside the other.
    """
    try:
        numbers = [float(name) for name in names]
    except ValueError:
        numbers = []
    above = [number for number in numbers if number > 0]
    wide = len(above) > 0 and max(above) >= 10 * min(above)
    if not numbers or (wide and len(above) < len(numbers)):
        return {name: float(place) for place, name in enumerate(names)}, "linear"
    return dict(zip(names, numbers, strict=True)), "log" if wide else "linear"


def effect(
    lines: Mapping[str, Any], names: Sequence[str], key: str, measure: str, trivial: Mapping[str, float]
) -> Figure:
    """What one setting with the values `names` did: a line a setting of the others, `mean` by value with bars of `std`.

    A baseline is drawn where it lies near the lines, else named in the title.
    """
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    at, scale = places(names)
    line = "none" if any(name[:1].isalpha() or name[:1] == "[" for name in names) else "-"  # choices have no between
    for label, table in lines.items():
        axes.errorbar(
            [at[value] for value in table.index],
            table["mean"],
            table["std"].fillna(0),
            marker="o",
            linestyle=line,
            capsize=3,
            label=label or None,
        )
    low, high = axes.get_ylim()
    away = []
    for (name, loss), style in zip(trivial.items(), ("--", ":"), strict=False):
        if low - (high - low) <= loss <= high + (high - low):
            axes.axhline(loss, color="gray", linestyle=style, label=f"{name} (test)")
        else:
            away.append(f"{name} {format_loss(loss)}")
    axes.set_xscale(scale)
    axes.set_xticks([at[name] for name in names], names)
    axes.minorticks_off()
    if max(map(len, names)) > 10:
        axes.tick_params(axis="x", rotation=15, labelsize=8)
    bars = any(table["std"].gt(0).any() for table in lines.values())
    axes.set(xlabel=key, ylabel=f"{measure} (bars: spread over seeds)" if bars else measure)
    axes.set_title("off the chart: " + ", ".join(away) if away else "", fontsize=9)
    if axes.get_legend_handles_labels()[1]:
        figure.legend(loc="outside lower center", ncols=2, fontsize=7)  # inside it would cover points
    return figure
