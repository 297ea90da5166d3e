"""Tensors in, Figure out: no disk, no trainer, no pyplot state."""

from collections.abc import Mapping, Sequence
from math import ceil

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


def image_grid(images: np.ndarray, titles: Sequence[str] | None, columns: int, heading: str) -> Figure:
    """Images (N, 28, 28) in [0, 1] in rows of `columns`, white on black, a title over each."""
    rows = ceil(len(images) / columns)
    step = 1.55 if titles else 1.0
    figure = Figure(figsize=(1.25 * columns, step * rows + 0.6), layout="constrained")
    figure.suptitle(heading, fontsize=11)
    for i, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.axis("off")
        if i < len(images):
            axes.imshow(images[i], cmap="gray", vmin=0, vmax=1)
            if titles:
                axes.set_title(titles[i], fontsize=8)
    return figure


def centers(images: np.ndarray, confusion: np.ndarray, heading: str) -> Figure:
    """The centres (K, 28, 28), each with its number of images and the digit that most of them show."""
    titles = []
    for k, column in enumerate(confusion.T):
        total = int(column.sum())
        share = f"{column.max() / total:.0%} show a {column.argmax()}" if total else "won no image"
        titles.append(f"centre {k}\n{total:,} images\n{share}")
    return image_grid(images, titles, min(5, len(images)), heading)


def confusion_matrix(confusion: np.ndarray, heading: str) -> Figure:
    """Digits by centres (10, K), the counts written in, shaded by the share of the digit."""
    k = confusion.shape[1]
    figure = Figure(figsize=(max(5.0, 0.62 * k + 1.6), 5.8), layout="constrained")
    axes = figure.subplots()
    share = confusion / np.maximum(1, confusion.sum(1, keepdims=True))
    picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    figure.colorbar(picture, label="share of the digit's images")
    if k <= 20:
        for (row, column), count in np.ndenumerate(confusion):
            color = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, f"{count}", ha="center", va="center", fontsize=8, color=color)
    axes.set(xlabel="centre", ylabel="digit", title=heading)
    axes.set_yticks(range(10))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if k <= 20:
        axes.set_xticks(range(k))
    return figure


def loss(history: Sequence[Mapping[str, float]], test: float, baselines: Mapping[str, float], heading: str) -> Figure:
    """Training and validation loss by epoch, the final test loss, and the baselines to beat."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    epochs = [row["epoch"] for row in history]
    for name, marker in (("train/loss", "o"), ("val/loss", "s")):
        values = [row.get(name, np.nan) for row in history]
        if np.isfinite(values).any():
            axes.plot(epochs, values, marker=marker, markersize=4, label=f"{name} (last {values[-1]:.4f})")
    axes.plot(epochs[-1:], [test], "k*", markersize=11, label=f"test/loss {test:.4f}")
    for (name, value), style in zip(baselines.items(), ("--", ":", "-."), strict=False):
        axes.axhline(value, color="gray", linestyle=style, label=f"{name.replace('_', ' ')} {value:.4f}")
    axes.set(xlabel="epoch", ylabel="mean squared error per pixel", title=heading)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure
