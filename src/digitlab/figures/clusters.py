"""Figures of a clustering: its centres, and its confusion matrix."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Affine2D

from digitlab.figures.layout import DIGITS, NAMES, create_axes, image_grid, short


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
