"""The baselines, worked by hand and against numpy."""

import numpy as np
import pytest
import torch

from digitlab.data.images import Images, Split
from digitlab.models import baselines


def test_baselines_worked_by_hand() -> None:
    """The mean of a black and a white image is grey; one component restores any uniform grey."""
    flat = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1).expand(2, 28, 28)
    train = Images(flat, torch.tensor([0, 1]))
    grey = Images(torch.full((1, 28, 28), 51, dtype=torch.uint8), torch.tensor([0]))
    data = Split(train, train, grey)
    assert baselines.mean_image(data) == pytest.approx((0.5 - 0.2) ** 2)
    assert baselines.pca(data, 1) == pytest.approx(0, abs=1e-6)


def test_pca_converts_a_million_images_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 10,000 of 25,000 test images are floats at a time; the loss is numpy's."""
    rng, sizes = np.random.default_rng(0), []

    def scale(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        return images.float() / 255

    def random_images(n: int) -> Images:
        images = rng.integers(0, 256, (n, 28, 28)).astype(np.uint8)
        return Images(torch.from_numpy(images), torch.zeros(n, dtype=torch.long))

    monkeypatch.setattr(baselines, "scale", scale)
    train, test = random_images(50), random_images(25_000)
    loss = baselines.pca(Split(train, train, test), 3)
    assert max(sizes) <= 10_000
    x = train.images.numpy().reshape(50, -1) / 255
    basis = np.linalg.svd(x - x.mean(0))[2][:3]
    # Every 50th image is enough.
    y = test.images.numpy().reshape(25_000, -1)[::50] / 255 - x.mean(0)
    assert loss == pytest.approx(((y - y @ basis.T @ basis) ** 2).mean(), rel=1e-2)
