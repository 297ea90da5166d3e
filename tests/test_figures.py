"""The figures: their layout, and numbers drawn as glyphs."""

from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from digitlab import figures
from digitlab.figures import clusters


def test_numbers_drawn_as_glyphs_look_like_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The confusion matrix looks as with Matplotlib's texts, to the shade of a pixel.

    A single other digit makes a larger difference.
    """
    table = np.random.default_rng(0).integers(0, 6000, (10, 10))
    # Numbers of one digit, and white ones.
    table[2, :3], table[np.diag_indices(10)] = 0, 90000

    def write_texts(figure: Figure, axes: Axes, table: np.ndarray, colors: np.ndarray) -> None:
        for (row, column), number in np.ndenumerate(table):
            color = colors[row, column]
            axes.text(column, row, str(number), ha="center", va="center", fontsize=8, color=color)

    def write_other_texts(
        figure: Figure, axes: Axes, table: np.ndarray, colors: np.ndarray
    ) -> None:
        write_texts(figure, axes, table + (table == 0), colors)

    def draw(write: Callable[..., None]) -> np.ndarray:
        monkeypatch.setattr(clusters, "write_numbers", write)
        return figures.render(figures.confusion_matrix(table, "")).astype(int)

    glyphs, texts = draw(clusters.write_numbers), draw(write_texts)
    other_texts = draw(write_other_texts)
    assert np.abs(glyphs - texts).max() < 40 < 100 < np.abs(other_texts - texts).max()


def test_of_thousands_of_centres_a_hundred_are_drawn() -> None:
    """Matplotlib cannot draw a figure of 5,000; the confusion matrix has shades for all counts."""
    confusion = np.ones((10, 5000), dtype=int)
    picture = figures.render(figures.centers(np.zeros((5000, 28, 28)), confusion, "Final centres"))
    assert max(picture.shape) < 5000
    assert max(figures.render(figures.confusion_matrix(confusion, "")).shape) < 5000


@pytest.mark.parametrize("heading", ["Final centres", "Final centres\nno better"])
@pytest.mark.parametrize("k", [10, 20, 30, 100])
def test_the_heading_is_close_above_the_centres(k: int, heading: str) -> None:
    """In a tall figure, Matplotlib's own place for it would be among the images."""
    figure = figures.centers(np.zeros((k, 28, 28)), np.ones((10, k), dtype=int), heading)
    figures.render(figure)
    suptitle = figure._suptitle.get_window_extent()  # type: ignore[attr-defined]
    gap = suptitle.y0 - figure.axes[0].get_window_extent().y1
    assert 0 <= gap / figure.dpi < 0.2  # inches


@pytest.mark.parametrize(("n_images", "columns", "rows"), [(5, 5, 2), (10, 10, 2), (25, 10, 4)])
def test_each_image_is_above_its_reconstruction(n_images: int, columns: int, rows: int) -> None:
    """Image i has brightness i / 100 and its reconstruction, in the same column, 0.5 more."""
    originals = np.repeat(np.arange(n_images) / 100, 784).reshape(-1, 28, 28)
    (axes,) = figures.reconstructions(originals, originals + 0.5, "").axes
    (picture,) = axes.images
    pixels = np.asarray(picture.get_array())
    assert pixels.shape == (rows * 30, columns * 30)
    for row in range(0, rows, 2):
        upper, lower = pixels[row * 30, ::30], pixels[(row + 1) * 30, ::30]
        expected = [(row // 2 * columns + i) / 100 for i in range(columns)]
        assert upper.tolist() == pytest.approx(expected)
        assert lower - upper == pytest.approx(0.5)
    assert [text.get_text() for text in axes.texts] == ["original", "restored"] * (rows // 2)
