"""Figures of an autoencoder: reconstructions, latents, walks among them, and its stages."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from digitlab.figures.layout import DIGITS, NAMES, create_axes, image_grid, short


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


def traversals(
    images: np.ndarray,
    offsets: Sequence[float],
    dimensions: Sequence[int],
    shares: Sequence[float],
    heading: str,
) -> Figure:
    """Draw the images that are decoded while one coordinate of a latent moves.

    Args:
        images: (rows, columns, H, W) or (rows, columns, H, W, 3) in [0, 1].
        offsets: How far the coordinate is moved in each column, in standard deviations.
        dimensions: The coordinate that moves in each row.
        shares: Its share of the variance of all latents.
        heading: The title of the figure.
    """
    rows = zip(dimensions, shares, strict=True)
    names = [f"z[{dimension}], {share:.0%}" for dimension, share in rows]
    heads = [f"{offset:+g} sd" if offset else "unchanged" for offset in offsets]
    flat = images.reshape(-1, *images.shape[2:])
    return image_grid(flat, None, len(offsets), heading, names, heads=heads, cell=0.8)


def interpolations(
    originals: np.ndarray, decoded: np.ndarray, ends: Sequence[tuple[str, str]], heading: str
) -> Figure:
    """Draw a row of decoded images between the two originals of each pair.

    Args:
        originals: (pairs, 2, H, W) or (pairs, 2, H, W, 3) in [0, 1].
        decoded: (pairs, steps, H, W) or (pairs, steps, H, W, 3) in [0, 1].
        ends: The names of the classes of each pair.
        heading: The title of the figure.
    """
    rows = np.concatenate([originals[:, :1], decoded, originals[:, 1:]], axis=1)
    steps = decoded.shape[1]
    shares = [f"{step / (steps - 1):.0%}" for step in range(steps)]
    left, right = ([short(name) for name in names] for names in zip(*ends, strict=True))
    return image_grid(
        rows.reshape(-1, *rows.shape[2:]),
        None,
        steps + 2,
        heading,
        left,
        ends=right,
        heads=["original", *shares, "original"],
        cell=0.9,
    )


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
