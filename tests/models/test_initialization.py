"""The initial centres of k-means: what each choice draws, and what it refuses."""

from typing import Any

import numpy as np
import pytest
import torch

from digitlab.data.images import Images
from digitlab.models import initialization
from digitlab.models.initialization import draw_centers
from digitlab.registry import Registry
from digitlab.runtime.seeds import Stream, generator


def make_rng(seed: int = 0) -> torch.Generator:
    return generator(seed, Stream.INIT)


def random_images(n: int = 40, low: int = 0, high: int = 255) -> Images:
    """Images of random grey values from low to high."""
    images = torch.randint(low, high + 1, (n, 28, 28), generator=make_rng(), dtype=torch.uint8)
    return Images(images, torch.arange(n) % 10)


def test_init_digit_draws_one_image_of_each_class() -> None:
    """Centre i is a training image of digit i."""
    data = random_images()
    for digit, center in enumerate(draw_centers("digit", data, 10, make_rng())):
        members = data.images[data.labels == digit].flatten(1) / 255
        assert (members == center).all(1).any()


@pytest.mark.parametrize("init", ["sample", "kmeans++"])
def test_inits_from_images_draw_distinct_training_images(init: str) -> None:
    """Each centre is a training image and none is drawn twice."""
    data = random_images()
    centers = draw_centers(init, data, 12, make_rng())
    matches = (centers[:, None] == data.images.flatten(1)[None] / 255).all(2)  # (K, N)
    assert matches.sum() == 12
    assert len(matches.nonzero()[:, 1].unique()) == 12


def test_kmeans_plus_plus_prefers_distant_images() -> None:
    """Of 39 equal black images and a white one, two centres are always one of each."""
    images = torch.zeros(40, 28, 28, dtype=torch.uint8)
    images[17] = 255
    data = Images(images, torch.zeros(40).long())
    for seed in range(5):
        centers = draw_centers("kmeans++", data, 2, make_rng(seed))
        assert sorted(centers.mean(1).tolist()) == [0, 1]


def test_kmeans_plus_plus_accepts_fewer_distinct_images_than_centres() -> None:
    """If all images are equal, all centres are equal; nothing divides by zero."""
    images = torch.full((5, 28, 28), 51, dtype=torch.uint8)
    centers = draw_centers("kmeans++", Images(images, torch.zeros(5).long()), 3, make_rng())
    torch.testing.assert_close(centers, torch.full((3, 784), 0.2))


def test_kmeans_plus_plus_recognizes_equal_bright_images() -> None:
    """Of six images of 250 and 251, fifty times each, the six centres are the distinct ones.

    The distance between copies is exactly 0.
    """
    data = random_images(6, 250, 251)
    copies = data.take(torch.arange(300) % 6)
    for seed in range(5):
        centers = draw_centers("kmeans++", copies, 6, make_rng(seed))
        assert len(centers.unique(dim=0)) == 6


def test_init_random_is_uniform_noise() -> None:
    """Pixels are in [0, 1) with mean 1/2, as in the seed report."""
    centers = draw_centers("random", random_images(), 10, make_rng())
    assert centers.min() >= 0
    assert centers.max() < 1
    assert abs(centers.mean().item() - 0.5) < 0.02


def test_init_refuses_too_few_images() -> None:
    """More centres than images, or no image of some digit, give an error with a reason."""
    data = random_images()
    message = r"n_clusters=41: init=sample needs as many images, here are 40"
    with pytest.raises(ValueError, match=message):
        draw_centers("sample", data, 41, make_rng())
    with pytest.raises(ValueError, match=r"no training image has the label 9"):
        draw_centers("digit", data.take(data.labels != 9), 10, make_rng())


@pytest.mark.parametrize(
    ("shape", "value"), [((3, 784), 255), ((784,), 1), ((3, 28, 28), 1), ((2, 784), 1)]
)
def test_a_custom_init_without_valid_centres_is_refused(
    shape: tuple[int, ...], value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unscaled bytes, one centre for all, images, too few centres: copy_ would accept them."""

    def set_result(result: Any) -> None:
        inits = Registry("init", "register_init", {})
        inits.register("mine")(lambda data, k, rng: result)
        monkeypatch.setattr(initialization, "INITS", inits)

    set_result(torch.full(shape, value))
    images = Images(torch.zeros(5, 28, 28, dtype=torch.uint8), torch.zeros(5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"init=mine: gives \(.*must be \(3, 784\) in \[0, 1\]"):
        draw_centers("mine", images, 3, make_rng())
    for result in (None, [[0.0] * 784] * 3, np.zeros((3, 784)), torch.zeros(0)):
        set_result(result)
        with pytest.raises(ValueError, match=r"init=mine: gives .* must be a tensor of \(3, 784\)"):
            draw_centers("mine", images, 3, make_rng())
