"""The figure of reconstruction errors: the loss by class, and the hardest images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from digitlab.figures.layout import NAMES, cell_shape, draw_images, heading_height, short
from digitlab.formatting import format_loss

# Images in a row, and their width in inches.
COLUMNS, CELL = 6, 1.0


def errors(
    by_class: Sequence[float],
    loss: float,
    baseline: float,
    classes: Sequence[str],
    originals: np.ndarray,
    restored: np.ndarray,
    titles: Sequence[str],
    heading: str,
) -> Figure:
    """Draw the loss of each class, and the hardest images above their reconstructions.

    Args:
        by_class: The loss of each class; NaN for a class without images.
        loss: The loss of all images.
        baseline: That of the mean image. It is drawn if it is near the others, otherwise the
            legend gives it.
        classes: The names of the classes.
        originals: (N, H, W) or (N, H, W, 3) in [0, 1].
        restored: The same for their reconstructions.
        titles: A text below each pair of images.
        heading: The title of the figure.
    """
    n, names = len(classes), [short(name) for name in classes]
    gap = np.ones((len(originals), max(1, originals.shape[2] // 28), *originals.shape[2:]))
    pairs = np.concatenate([originals, gap, restored.clip(0, 1)], axis=1)
    cell_height, cell_width = cell_shape(pairs, has_titles=True)
    rows = -(-len(pairs) // COLUMNS)
    # In inches: the edges of the axes, and the heights of the headings and of the labels.
    left = 0.7 + 0.07 * max(map(len, names))
    middle, right = left + 3.2, 0.25 + COLUMNS * CELL
    above, below = heading_height(heading) + 0.25, 0.9
    picture = rows * CELL * cell_height / cell_width
    height = max(above + picture, above + below + max(3.0, 0.17 * min(n, NAMES)))
    figure = Figure(figsize=(middle + right, height))
    figure.suptitle(heading, fontsize=11, y=1 - 0.08 / height)

    bars = figure.add_axes(
        (
            left / (middle + right),
            below / height,
            3.2 / (middle + right),
            1 - (above + below) / height,
        )
    )
    values = np.nan_to_num(np.asarray(by_class, dtype=float))
    bars.barh(range(n), values, color="tab:blue")
    bars.axvline(loss, color="black")
    place = "off the chart"
    if baseline <= 2 * max(values.max(), loss):
        bars.axvline(baseline, color="black", linestyle="--")
        place = "dashed line"
    # A legend takes as long to draw as all other texts.
    legend = f"line: all classes {format_loss(loss)}\n{place}: mean image {format_loss(baseline)}"
    bars.set(ylim=(n - 0.4, -0.6))
    bars.set_xlabel(f"mean squared error per pixel\n{legend}", fontsize=9)
    bars.tick_params(labelsize=8)
    # Matplotlib's own height of a title would take a quarter of the time of the figure.
    bars.set_title("Loss by class", fontsize=9, y=1.0)
    bars.xaxis.set_major_locator(MaxNLocator(4))
    bars.set_yticks([])
    if n <= NAMES:
        losses = ["none" if np.isnan(value) else format_loss(value) for value in by_class]
        beside = bars.get_yaxis_transform()
        for row, label in enumerate(zip(names, losses, strict=True)):
            # A tick takes twice the time of a text.
            style: dict[str, Any] = {"ha": "right", "va": "center", "fontsize": 8}
            bars.text(-0.02, row, "  ".join(label), transform=beside, **style)

    images = figure.add_axes(
        (
            (middle + 0.2) / (middle + right),
            1 - (above + picture) / height,
            COLUMNS * CELL / (middle + right),
            picture / height,
        )
    )
    draw_images(images, pairs, COLUMNS, titles)
    images.set_title("The hardest, each above its reconstruction", fontsize=9, y=1.0)
    return figure
