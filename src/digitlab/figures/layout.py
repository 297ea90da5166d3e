"""What the figures share: margins, images in rows, and pixels for files."""

from collections.abc import Sequence
from math import ceil

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

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
