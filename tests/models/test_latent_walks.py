"""Walks through the latents: what is unchanged, what moves, and where they end."""

import pytest
import torch
from torch import Tensor

from digitlab.models.autoencoder import Autoencoder
from digitlab.models.latent_walks import (
    MAX_COORDINATES,
    MAX_PAIRS,
    OFFSETS,
    STEPS,
    choose_pairs,
    interpolate,
    traverse,
)

from .test_autoencoder import make_model


@pytest.fixture
def model() -> Autoencoder:
    torch.manual_seed(0)
    return make_model().eval()


@pytest.fixture
def images() -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (30, 1, 28, 28), dtype=torch.uint8, generator=rng)


def test_the_middle_of_a_traversal_is_the_unchanged_image(
    model: Autoencoder, images: Tensor
) -> None:
    """It is decoded from the latent nearest to the mean; the others differ in one coordinate."""
    latents = model.encode(images)
    moved = traverse(latents)
    middle = moved.z[:, OFFSETS.index(0)]
    assert (middle == latents[moved.start]).all()
    restored = model.reconstruct(images[moved.start, None])
    torch.testing.assert_close(model.decode(middle), restored.expand(3, -1, -1, -1))
    distances = (latents - latents.mean(0)).norm(dim=1)
    assert distances[moved.start] == distances.min()
    for row, coordinate in enumerate(moved.coordinates):
        difference = moved.z[row] - latents[moved.start]
        expected = torch.tensor(OFFSETS) * latents[:, coordinate].std(correction=0)
        torch.testing.assert_close(difference[:, coordinate], expected)
        assert difference.count_nonzero() == len(OFFSETS) - 1


def test_traversals_show_the_coordinates_of_largest_variance() -> None:
    """Of 12 coordinates with the variances 0 to 11, ten are shown, the largest first."""
    signs = torch.tensor([[1.0], [-1.0]])
    moved = traverse(signs * torch.arange(12).sqrt())
    assert moved.coordinates == [*range(11, 1, -1)]
    assert len(moved.z) == MAX_COORDINATES
    assert moved.shares == pytest.approx([c / 66 for c in moved.coordinates])


def test_interpolations_begin_and_end_with_the_reconstructions(
    model: Autoencoder, images: Tensor
) -> None:
    """Their ends are decoded from the latents of the two images, the steps are equal."""
    latents = model.encode(images[:4])
    z = interpolate(latents[:2], latents[2:])
    assert z.shape == (2, STEPS, 3)
    restored = model.reconstruct(images[:4])
    torch.testing.assert_close(model.decode(z[:, 0]), restored[:2])
    torch.testing.assert_close(model.decode(z[:, -1]), restored[2:])
    steps = z.diff(dim=1)
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps))


def test_pairs_are_of_different_classes() -> None:
    """Ten digits give 0 with 5 to 4 with 9; 26 classes five pairs, and a single class none."""
    digits = torch.arange(20).flip(0) % 10
    assert digits[choose_pairs(digits)].tolist() == [[i, i + 5] for i in range(5)]
    letters = torch.arange(52) % 26
    assert letters[choose_pairs(letters)].tolist() == [[i, i + 13] for i in range(MAX_PAIRS)]
    assert choose_pairs(torch.tensor([7, 3, 7])).tolist() == [[1, 0]]
    assert choose_pairs(torch.tensor([7, 7])).shape == (0, 2)
