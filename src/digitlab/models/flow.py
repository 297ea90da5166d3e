"""N(0, I) seen through an invertible network (Dinh et al., 2017, https://arxiv.org/abs/1605.08803).

A latent z has the density of u = f(z) under N(0, I), and is drawn as the image of such a u:

    p(z) = N(f(z); 0, I) |det df/dz|,   z = f^-1(u),   u ~ N(0, I)                          (1)

f is a chain of affine couplings. Each splits z into halves a and b and gives [b', a], where
b' = b exp(s(a)) + t(a), by a network for s and t; log |det| is the sum of s (eq. 7 and 8 there).
B latents of Z dimensions.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from digitlab.models.muon import Muon
from digitlab.models.optimizers import make_scheduler

WIDTH = 128
# The largest |s|, so that a step of training cannot make a coupling explode.
MAX_LOG_SCALE = 2.0
# How `fit` trains: passes over the images, and latents in a minibatch.
FIT_EPOCHS, FIT_BATCH = 12, 512


def normal_log_density(x: Tensor) -> Tensor:
    """Compute log N(x; 0, I) of each row, (B,)."""
    return -(x.square() + math.log(2 * math.pi)).sum(1) / 2


class Coupling(nn.Module):
    """One coupling. It starts as the identity but for the order of the halves.

    Args:
        kept: The dimensions of a.
        changed: The dimensions of b.
    """

    def __init__(self, kept: int, changed: int) -> None:
        super().__init__()
        self.kept, self.changed = kept, changed
        last = nn.Linear(WIDTH, 2 * changed)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(
            nn.Linear(kept, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU(), last
        )

    def scale_and_shift(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Compute s and t of (1), (B, changed) each."""
        s, t = self.network(a).chunk(2, 1)
        return MAX_LOG_SCALE * torch.tanh(s / MAX_LOG_SCALE), t

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Compute [b', a] and log |det|, (B,)."""
        a, b = z.split([self.kept, self.changed], 1)
        s, t = self.scale_and_shift(a)
        return torch.cat([b * s.exp() + t, a], 1), s.sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        """Compute [a, b] of [b', a]."""
        b, a = z.split([self.changed, self.kept], 1)
        s, t = self.scale_and_shift(a)
        return torch.cat([a, (b - t) * (-s).exp()], 1)


class Flow(nn.Module):
    """The density (1).

    Args:
        latent_dim: Z, 2 or more.
        n_couplings: The number of couplings of f.
    """

    def __init__(self, latent_dim: int, n_couplings: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        half, rest = latent_dim // 2, latent_dim - latent_dim // 2
        # The halves change places, which matters if they differ in size.
        sizes = [(half, rest), (rest, half)] * n_couplings
        self.couplings = nn.ModuleList([Coupling(*size) for size in sizes[:n_couplings]])

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Compute u = f(z), (B, Z), and log |det df/dz|, (B,)."""
        log_determinant = torch.zeros_like(z[:, 0])
        # Rounded to bfloat16, f would not be the f that z is drawn by.
        with torch.autocast(z.device.type, enabled=False):
            for coupling in self.couplings:
                z, change = coupling(z)
                log_determinant = log_determinant + change
        return z, log_determinant

    def inverse(self, u: Tensor) -> Tensor:
        """Compute z = f^-1(u), (B, Z)."""
        for coupling in reversed(list(self.couplings)):
            assert isinstance(coupling, Coupling)
            u = coupling.inverse(u)
        return u

    def log_density(self, z: Tensor) -> Tensor:
        """Compute log p(z), (B,)."""
        u, log_determinant = self(z)
        density: Tensor = normal_log_density(u) + log_determinant
        return density

    @torch.no_grad()
    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """Draw z, float (n, Z) on the CPU."""
        device = next(self.parameters()).device
        return self.inverse(torch.randn(n, self.latent_dim, generator=rng).to(device)).cpu()

    @torch.enable_grad()
    def fit(self, draw: Callable[[Tensor], Tensor], n: int, rng: torch.Generator) -> None:
        """Train the density on the latents of an encoder that does not change any more.

        Beside a model in training it learns from latents that move, in small minibatches. A second
        stage closes most of the gap (compare Dai and Wipf, 2019, https://arxiv.org/abs/1903.05789).

        Args:
            draw: Gives latents, (B, Z), of the images with these indices, (B,).
            n: The number of images.
            rng: Gives the order.
        """
        optimizer = Muon(
            self.parameters(),
            lr=0.01,
            momentum=0.95,
            weight_decay=0.0,
            ns_steps=3,
            adamw_lr=0.003,
            adamw_weight_decay=0.0,
            beta2=0.99,
        )
        steps = FIT_EPOCHS * math.ceil(n / FIT_BATCH)
        schedule = make_scheduler(optimizer, "one_cycle_linear", steps, pct_start=0.1)
        assert schedule is not None
        for _ in range(FIT_EPOCHS):
            for indices in torch.randperm(n, generator=rng).split(FIT_BATCH):
                optimizer.zero_grad()
                (-self.log_density(draw(indices)).mean()).backward()
                optimizer.step()
                schedule.step()
        optimizer.zero_grad()
