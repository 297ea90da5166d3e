"""The densities of z: their moments, and what they cannot be fitted to."""

import pytest
import torch

from digitlab.models.prior import Prior
from digitlab.runtime.seeds import Stream, generator


def make_rng(seed: int = 0) -> torch.Generator:
    return generator(seed, Stream.PRIOR)


def test_the_standard_normal_has_its_moments() -> None:
    """As constructed, a prior draws z with mean 0 and covariance I."""
    z = Prior(1, 3, fitted=True).sample(20_000, make_rng())
    torch.testing.assert_close(z.mean(0), torch.zeros(3), rtol=0, atol=0.03)
    torch.testing.assert_close(z.T.cov(), torch.eye(3), rtol=0, atol=0.04)


def test_a_fitted_gaussian_has_the_moments_of_its_latents() -> None:
    """Mean and covariance of the samples are those of the latents."""
    mixing = torch.tensor([[2.0, 0.0], [1.0, 0.5]])
    noise = torch.randn(20_000, 2, generator=make_rng(1))
    latents = noise @ mixing.T + torch.tensor([3.0, -1.0])
    prior = Prior(1, 2)
    prior.fit(latents, seed=0)
    z = prior.sample(20_000, make_rng())
    torch.testing.assert_close(z.mean(0), latents.mean(0), rtol=0, atol=0.06)
    torch.testing.assert_close(z.T.cov(), latents.T.cov(), rtol=0, atol=0.15)


def test_samples_of_a_mixture_are_in_its_clusters() -> None:
    """With two distant clusters of 3 : 1, the samples have that ratio and none are in between.

    A single Gaussian has many samples in between.
    """
    rng = make_rng(2)
    first = torch.randn(3000, 2, generator=rng) * 0.1 - 5
    second = torch.randn(1000, 2, generator=rng) * 0.1 + 5
    mixture, gaussian = Prior(2, 2), Prior(1, 2)
    for prior in (mixture, gaussian):
        prior.fit(torch.cat([first, second]), seed=0)
    z = mixture.sample(4000, rng)
    assert (z.abs() > 4).all()
    assert float((z[:, 0] < 0).float().mean()) == pytest.approx(0.75, abs=0.03)
    assert (gaussian.sample(4000, rng).abs() < 4).any(1).float().mean() > 0.3


def test_a_constant_latent_is_sampled_as_the_constant() -> None:
    """A singular covariance has no Cholesky factor; a small added variance changes little."""
    latents = torch.cat(
        [torch.randn(500, 1, generator=make_rng()), torch.full((500, 1), 7.0)], dim=1
    )
    prior = Prior(1, 2)
    prior.fit(latents, seed=0)
    z = prior.sample(50, make_rng())
    torch.testing.assert_close(z[:, 1], torch.full((50,), 7.0), rtol=0, atol=0.01)


def test_a_mixture_of_more_components_than_images_is_refused() -> None:
    """30 components cannot be fitted to 20 latents."""
    message = r"model\.prior\.n_components=30: needs 30 training images or more, here are 20"
    with pytest.raises(ValueError, match=message):
        Prior(30, 2).fit(torch.randn(20, 2), seed=0)
