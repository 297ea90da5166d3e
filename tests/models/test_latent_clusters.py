"""Clusters of latents beside clusters of pixels."""

import pytest
import torch
from torch import Tensor

from digitlab.data.images import Images, Split
from digitlab.models.latent_clusters import compare_clusters


def test_separate_latents_are_clustered_without_an_error() -> None:
    """The first pixel names the class, the others are noise: only an encoder that reads it sees it.

    Its latents are ten distinct points, so every start of k-means finds the ten classes.
    """
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 10
    images = torch.randint(0, 256, (200, 1, 4, 4), dtype=torch.uint8, generator=rng)
    images[:, 0, 0, 0] = labels
    data = Images(images, labels)

    def encode(images: Tensor) -> Tensor:
        return torch.eye(10)[images[:, 0, 0, 0].long()]

    pixels, latents = compare_clusters(encode, Split(data, data, data))
    assert (pixels.space, pixels.dimensions) == ("pixels", 16)
    assert (latents.space, latents.dimensions) == ("latents", 10)
    assert [*latents.means.values()] == pytest.approx([1, 1, 1, 1])
    assert [*latents.deviations.values()] == pytest.approx([0, 0, 0, 0])
    assert pixels.means["accuracy"] < 0.5
