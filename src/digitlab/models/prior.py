"""Where z is drawn from: a mixture of Gaussians whose parameters lie in buffers.

A plain autoencoder does not ask its latents to follow N(0, I), so a decoder fed from there sees what no image
ever gave it. Ex-post density estimation (Ghosh et al., 2020, section 4) fits a density to the latents that the
training images do have, and draws from that. C components, Z latent dimensions, N latents.
"""

import warnings

import torch
from torch import Tensor, nn

ITERATIONS = 10  # of EM; with all latents, more of them change the digits less than another seed does


class Prior(nn.Module):
    """sum_c weight_c N(mean_c, T^2 L_c L_c^T); as constructed, N(0, I), unless it waits for a fit.

    A temperature T below 1 keeps draws nearer to the components' means: more typical digits, fewer odd ones.
    """

    def __init__(self, n_components: int, latent_dim: int, temperature: float = 1.0, *, fitted: bool = False) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.tensor(temperature))
        weight = 1 / n_components if fitted else 0.0  # no weight at all: nothing to draw from yet
        self.register_buffer("weights", torch.full((n_components,), weight))  # (C,)
        self.register_buffer("means", torch.zeros(n_components, latent_dim))  # (C, Z)
        self.register_buffer("factors", torch.eye(latent_dim).repeat(n_components, 1, 1))  # (C, Z, Z): L_c
        self.temperature: Tensor
        self.weights: Tensor
        self.means: Tensor
        self.factors: Tensor

    def require(self, latents: int) -> None:
        """Raise ValueError for fewer latents than components, or than two."""
        c = len(self.weights)
        if latents < max(2, c):
            what = f"model.prior.n_components={c}:" if c > 1 else "data.train_size: a density of the latents"
            raise ValueError(f"{what} needs {max(2, c)} training images or more, here are {latents}")

    def fit(self, latents: Tensor, seed: int) -> None:
        """Fit the components to latents (N, Z): for one by moments, for more by scikit-learn's EM.

        Raises ValueError for fewer latents than components, or than two.
        """
        self.require(len(latents))
        c = len(self.weights)
        x = latents.detach().double().cpu()
        if c == 1:
            centered = x - x.mean(0)
            covariances = (centered.T @ centered / (len(x) - 1))[None]
            self.weights.fill_(1.0)
            self.means.copy_(x.mean(0))
        else:
            from sklearn.exceptions import ConvergenceWarning
            from sklearn.mixture import GaussianMixture

            mixture = GaussianMixture(
                c, max_iter=ITERATIONS, tol=1e-3, reg_covar=max(1e-4 * float(x.var(0).mean()), 1e-9), random_state=seed
            )
            with warnings.catch_warnings():  # the last per mille of likelihood changes no picture
                warnings.simplefilter("ignore", ConvergenceWarning)
                mixture.fit(x.float().numpy())
            self.weights.copy_(torch.from_numpy(mixture.weights_))
            self.means.copy_(torch.from_numpy(mixture.means_))
            covariances = torch.from_numpy(mixture.covariances_).double()
        # A latent that never varies has no variance to factor: a grain of it keeps L_c defined.
        grain = 1e-6 * covariances.diagonal(dim1=1, dim2=2).mean().clamp(min=1e-12)
        self.factors.copy_(torch.linalg.cholesky(covariances + grain * torch.eye(x.shape[1], dtype=torch.double)))

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """Draw z, float (n, Z) on the CPU. Raises ValueError before a fit, or where its weights are none."""
        if not (self.weights >= 0).all() or not 0 < self.weights.sum() < torch.inf:
            raise ValueError("this prior is not fitted yet: complete the run (python train.py resume=RUN)")
        chosen = torch.multinomial(self.weights.cpu(), n, replacement=True, generator=rng)  # (n,)
        z = torch.randn(n, self.means.shape[1], generator=rng) * self.temperature.cpu()
        for component in chosen.unique():
            rows = chosen == component
            z[rows] = self.means[component].cpu() + z[rows] @ self.factors[component].cpu().T
        return z
