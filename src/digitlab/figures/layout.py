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


def cell_shape(images: np.ndarray, *, has_titles: bool) -> tuple[int, int]:
    """The height and the width of a cell of `draw_images`, in pixels of the images.

    An image is as wide as one of MNIST's, however many pixels it has.
    """
    height, width = images.shape[1:3]
    unit = width / 28
    gap = max(1, round(2 * unit))
    return height + (round(14 * unit) if has_titles else gap), width + gap


def draw_images(
    axes: Axes,
    images: np.ndarray,
    columns: int,
    titles: Sequence[str] | None = None,
    *,
    names: Sequence[str] = (),
    ends: Sequence[str] = (),
    heads: Sequence[str] = (),
) -> None:
    """Draw images in rows; the arguments are those of `image_grid`.

    All of them are one picture; separate pictures would take three times as long to draw.
    """
    rows, (height, width) = ceil(len(images) / columns), images.shape[1:3]
    cell_height, cell_width = cell_shape(images, has_titles=titles is not None)
    unit = width / 28
    axes.axis("off")
    canvas = np.ones((rows * cell_height, columns * cell_width, *images.shape[3:]))
    for i, image in enumerate(images):
        y, x = i // columns * cell_height, i % columns * cell_width
        canvas[y : y + height, x : x + width] = image
        if titles:
            below = y + height + unit
            axes.text(x + width / 2, below, titles[i], ha="center", va="top", fontsize=8)
    right = columns * cell_width + unit
    for x, side, texts in ((-3 * unit, "right", names), (right, "left", ends)):
        rotation = 90 if max(map(len, texts), default=0) > 2 else 0
        for row, text in enumerate(texts):
            y = row * cell_height + height / 2
            axes.text(x, y, text, ha=side, va="center", rotation=rotation, fontsize=8)
    for column, text in enumerate(heads):
        x = column * cell_width + width / 2
        axes.text(x, -1.5 * unit, text, ha="center", va="bottom", fontsize=8)
    extent = (0, columns * cell_width, rows * cell_height, 0)
    axes.imshow(canvas.clip(0, 1), cmap="gray", vmin=0, vmax=1, extent=extent)
    axes.set_anchor("N")


def image_grid(
    images: np.ndarray,
    titles: Sequence[str] | None,
    columns: int,
    heading: str,
    names: Sequence[str] = (),
    *,
    ends: Sequence[str] = (),
    heads: Sequence[str] = (),
    cell: float = 1.25,
) -> Figure:
    """Draw images in rows.

    Args:
        images: (N, H, W) in [0, 1], drawn white on black, or (N, H, W, 3) in colour.
        titles: A text below each image.
        columns: The number of images in a row.
        heading: The title of the figure.
        names: A text before each row.
        ends: A text after each row.
        heads: A text above each column.
        cell: The width of an image with its margin, in inches.
    """
    rows = ceil(len(images) / columns)
    cell_height, cell_width = cell_shape(images, has_titles=titles is not None)
    left = 0.05 if names else 0.01
    share = 0.99 - left - (0.04 if ends else 0)
    picture_width = max(4.5, cell * columns)
    picture_height = cell * cell_height / cell_width * rows * share + 0.05
    above = heading_height(heading) + (0.2 if heads else 0)
    figure = Figure(figsize=(picture_width, picture_height + above))
    axes = figure.add_axes((left, 0, share, picture_height / (picture_height + above)))
    draw_images(axes, images, columns, titles, names=names, ends=ends, heads=heads)
    figure.suptitle(heading, fontsize=11, y=1 - 0.08 / figure.get_figheight())
    return figure
