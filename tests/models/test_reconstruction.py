"""The errors of a reconstruction: the loss by class and the hardest images."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from digitlab.data.images import Images, Split
from digitlab.models.baselines import mean_image, mean_image_losses
from digitlab.models.reconstruction import ReconstructionModel, mean_by_class


class Black(ReconstructionModel):
    """A model that reconstructs every image as black."""

    def __init__(self) -> None:
        super().__init__(optimizer={}, scheduler={}, seed=0, image_shape=(1, 2, 2))

    def reconstruct(self, images: Any) -> Tensor:
        return torch.zeros(images.shape)


@pytest.fixture
def four() -> Images:
    """Images of class 0 with four and with no white pixels, and of class 2 with one and two."""
    images = torch.zeros(4, 4, dtype=torch.uint8)
    for image, n_white in zip(images, (4, 0, 1, 2), strict=True):
        image[:n_white] = 255
    return Images(images.view(4, 1, 2, 2), torch.tensor([0, 0, 2, 2]))


def test_loss_by_class_worked_by_hand(four: Images) -> None:
    """Black loses the share of white pixels: 1, 0, 1/4, 1/2. The classes lose 1/2 and 3/8."""
    loss, losses = Black().measure_losses(four)
    assert losses.tolist() == [1, 0, 0.25, 0.5]
    assert loss == 1.75 / 4
    by_class = mean_by_class(losses, four.labels, 3)
    assert by_class.tolist() == pytest.approx([0.5, np.nan, 0.375], nan_ok=True)


def test_the_hardest_images_come_first(four: Images) -> None:
    """The figure has them in the order of their losses, each above its black reconstruction."""
    figure = Black().draw_errors(four, "test", Split(four, four, four))
    bars, images = figure.axes
    titles = [text.get_text() for text in images.texts]
    assert titles == ["0\n1.0000", "2\n0.5000", "2\n0.2500", "0\n0.00"]
    picture = np.asarray(images.images[0].get_array())
    # An image has 2 x 2 pixels, and a white one below and beside it.
    assert picture[:2, :11].sum((0, 1)).item() == 7 + 3 * 2
    assert [picture[:2, 3 * i : 3 * i + 2].sum() for i in range(4)] == [4, 2, 1, 0]
    assert picture[3:5, :2].sum() == 0
    ends = [bar.get_extents().transformed(bars.transData.inverted()).x1 for bar in bars.patches]
    assert ends[:4] == pytest.approx([0.5, 0, 0.375, 0])


def test_the_losses_of_the_mean_image_have_its_loss_as_their_mean(four: Images) -> None:
    """Images of the mean 7/16 of white; the mean over images is the baseline of a run."""
    losses = mean_image_losses(four, four.images)
    assert losses.shape == (4,)
    assert float(losses.mean()) == pytest.approx(mean_image(Split(four, four, four)))
