"""The density that latents z are drawn from: a mixture of Gaussians with its parameters in buffers.

A plain autoencoder does not train its latents to follow N(0, I). A decoder of samples from N(0, I)
therefore gets inputs that no image has given it. Ex-post density estimation (Ghosh et al., 2020,
section 4) fits a density to the latents of the training images and draws from that.
C components, Z latent dimensions, N latents.
"""

import warnings

import torch
from torch import Tensor, nn

# Iterations of EM. With all latents, more of them change the digits less than another seed does.
ITERATIONS = 10


class Prior(nn.Module):
    """The density sum_c weight_c N(mean_c, T^2 L_c L_c^T).

    Args:
        n_components: C.
        latent_dim: Z.
        temperature: T. Below 1 it draws z nearer to the means of the components, which gives more
            typical and fewer odd digits.
        fitted: Whether the prior can be sampled as constructed, as N(0, I) for T = 1; otherwise it
            needs `fit` first.
    """

    temperature: Tensor
    weights: Tensor
    means: Tensor
    factors: Tensor

    def __init__(
        self,
        n_components: int,
        latent_dim: int,
        temperature: float = 1.0,
        *,
        fitted: bool = False,
    ) -> None:
        super().__init__()
        # Weights of 0 mark a prior that is not fitted.
        weight = 1 / n_components if fitted else 0.0
        factors = torch.eye(latent_dim).repeat(n_components, 1, 1)
        self.register_buffer("temperature", torch.tensor(temperature))
        self.register_buffer("weights", torch.full((n_components,), weight))  # (C,)
        self.register_buffer("means", torch.zeros(n_components, latent_dim))  # (C, Z)
        self.register_buffer("factors", factors)  # L_c, (C, Z, Z)

    def check_size(self, n: int) -> None:
        """Raise ValueError if n latents are too few: less than two, or than the components."""
        c = len(self.weights)
        if n < max(2, c):
            what = "data.train_size: a density of the latents"
            if c > 1:
                what = f"model.prior.n_components={c}:"
            raise ValueError(f"{what} needs {max(2, c)} training images or more, here are {n}")

    def fit(self, latents: Tensor, seed: int) -> None:
        """Fit the density to latents (N, Z): a Gaussian by its moments, a mixture by EM.

        Raises:
            ValueError: There are too few latents, see `check_size`.
        """
        self.check_size(len(latents))
        x = latents.detach().double().cpu()
        if len(self.weights) == 1:
            centered = x - x.mean(0)
            covariances = (centered.T @ centered / (len(x) - 1))[None]
            self.weights.fill_(1.0)
            self.means.copy_(x.mean(0))
        else:
            covariances = self._fit_mixture(x, seed)
        # Without added variance, L_c is not defined for a latent that never varies.
        added = 1e-6 * covariances.diagonal(dim1=1, dim2=2).mean().clamp(min=1e-12)
        identity = torch.eye(x.shape[1], dtype=torch.double)
        self.factors.copy_(torch.linalg.cholesky(covariances + added * identity))

    def _fit_mixture(self, x: Tensor, seed: int) -> Tensor:
        """Fit weights and means by scikit-learn's EM; return the covariances, (C, Z, Z)."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture

        mixture = GaussianMixture(
            len(self.weights),
            max_iter=ITERATIONS,
            tol=1e-3,
            reg_covar=max(1e-4 * float(x.var(0).mean()), 1e-9),
            random_state=seed,
        )
        # EM stops before convergence on purpose, see ITERATIONS.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            mixture.fit(x.float().numpy())
        self.weights.copy_(torch.from_numpy(mixture.weights_))
        self.means.copy_(torch.from_numpy(mixture.means_))
        return torch.from_numpy(mixture.covariances_).double()

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """Draw z, float (n, Z) on the CPU.

        Raises:
            ValueError: The prior is not fitted, or its weights are no probabilities.
        """
        if not (self.weights >= 0).all() or not 0 < self.weights.sum() < torch.inf:
            raise ValueError("this prior is not fitted yet: complete the run (resume=RUN)")
        weights = self.weights.cpu()
        components = torch.multinomial(weights, n, replacement=True, generator=rng)  # (n,)
        z = torch.randn(n, self.means.shape[1], generator=rng) * self.temperature.cpu()
        for c in components.unique():
            rows = components == c
            z[rows] = self.means[c].cpu() + z[rows] @ self.factors[c].cpu().T
        return z
