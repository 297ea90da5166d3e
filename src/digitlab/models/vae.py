"""A variational autoencoder (Kingma and Welling, 2014, https://arxiv.org/abs/1312.6114).

The encoder gives a Gaussian of the latent for each image, q(z|x) = N(m, diag(s^2)). The decoder
gives the mean d(z) of the image, p(x|z) = N(d(z), v I), and z has the density N(0, I). The negative
evidence lower bound of an image, in nats and up to a constant, is

    |x - d(z)|^2 / (2v) + KL,   z = m + s * noise,   noise ~ N(0, I)                        (1)
    KL = 1/2 sum_j (m_j^2 + s_j^2 - 1 - log s_j^2)                                          (2)

The training loss is the mean over images of (1) times 2v / D, for the D numbers of an image:

    (|x - d(z)|^2 + beta KL) / D,   beta = 2v                                               (3)

With a flow f, z has the density p(z) of `flow` in place of N(0, I), and one drawn z estimates

    KL = E_q [log q(z|x) - log p(z)]                                                        (4)

For u = f(z) nothing else changes: u ~ N(0, I), the decoder of u is d after f^-1, and q(u|x) is the
image of a Gaussian by f, as in Rezende and Mohamed (2015).

So beta (Higgins et al., 2017) is twice the variance that a pixel is assumed to have. beta = 0
trains an autoencoder; the larger it is, the closer the latents of the images come to N(0, I), and
the coarser are the reconstructions. The bound is tightest where v is the mean squared error of the
reconstructions (Rybkin et al., 2021).
B images, Z latent dimensions.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from digitlab.data.images import Images, Split
from digitlab.models.autoencoder import Autoencoder, mean_squared_error
from digitlab.models.flow import Flow, normal_log_density
from digitlab.registry import register_model
from digitlab.runtime.seeds import Stream, generator

# A latent dimension is active if its mean varies more than this over the images (Burda et al.,
# 2016, https://arxiv.org/abs/1509.00519, section 5.2).
ACTIVE_VARIANCE = 0.01


class Posterior(NamedTuple):
    """q(z|x) of B images: its means and log variances, float (B, Z) each."""

    mean: Tensor
    log_variance: Tensor

    def sample(self, rng: torch.Generator | None = None) -> Tensor:
        """Draw z for each image by (1); without `rng` from torch's global generator."""
        noise = torch.randn(
            self.mean.shape, generator=rng, device=self.mean.device, dtype=self.mean.dtype
        )
        return self.mean + noise * (self.log_variance / 2).exp()

    def divergence(self) -> Tensor:
        """The terms of (2), (B, Z): the KL divergence from N(0, 1) of each dimension, in nats."""
        return (self.mean.square() + self.log_variance.exp() - 1 - self.log_variance) / 2

    def log_density(self, z: Tensor) -> Tensor:
        """Compute log q(z|x), (B,)."""
        noise = (z - self.mean) * (-self.log_variance / 2).exp()
        return normal_log_density(noise) - self.log_variance.sum(1) / 2


@register_model("vae")
class VAE(Autoencoder):
    """An autoencoder whose latents are drawn from q(z|x) in training.

    `encode` gives the means m. `train/loss` and the like are mean squared errors, as an
    autoencoder's: of drawn z in training, of the means otherwise.

    Args:
        beta: The weight of the KL divergence in (3).
        flow: The number of couplings of f, or 0 for none.
        **options: See `Autoencoder`.
    """

    best_experiment = "vae_best"

    def __init__(self, beta: float, flow: int, **options: Any) -> None:
        super().__init__(**options)
        self.beta = beta
        self.has_flow = flow > 0
        if self.has_flow:
            self.priors["standard_normal"] = Flow(self.latent_dim, flow)
        to_mean = self.encoder.get_submodule("latent")
        assert isinstance(to_mean, nn.Linear)
        self.log_variance = nn.Linear(to_mean.in_features, self.latent_dim)

    def setup(self, stage: str) -> None:
        """Compile the method that training calls in place of the encoder."""
        super().setup(stage)
        if stage == "fit" and self.compiled:
            self.posterior = torch.compile(self.posterior)  # type: ignore[method-assign]

    def posterior(self, x: Tensor) -> Posterior:
        """Compute q(z|x) of prepared images (B, C, H, W)."""
        *stages, to_mean = self.encoder
        for stage in stages:
            x = stage(x)
        # The divergence in bfloat16 would cancel where q is close to N(0, I).
        return Posterior(to_mean(x).float(), self.log_variance(x).float())

    def divergence(self, posterior: Posterior, z: Tensor) -> Tensor:
        """Compute the mean of (2) over images, or with a flow that of (4) by one z each."""
        flow = self.priors["standard_normal"]
        if isinstance(flow, Flow):
            return (posterior.log_density(z) - flow.log_density(z)).mean()
        return posterior.divergence().sum(1).mean()

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Compute the loss (3) of a minibatch; log its two parts.

        The noise comes from torch's global generator, which each epoch seeds.
        """
        x = self.arrange(batch)
        posterior = self.posterior(x)
        z = posterior.sample()
        loss = mean_squared_error(self.decoder(z), x)
        divergence = self.divergence(posterior, z)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        self.log("train/kl", divergence, on_step=False, on_epoch=True)
        return loss + self.beta / self.pixels * divergence

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Log the loss of held-out images, restored from their means, and the divergence."""
        x = self.arrange(batch)
        posterior = self.posterior(x)
        self.log("val/loss", mean_squared_error(self.decoder(posterior.mean), x))
        self.log("val/kl", self.divergence(posterior, posterior.sample()))

    @torch.no_grad()
    def encode_posterior(self, images: Any) -> Posterior:
        """Compute q(z|x) of images, on the CPU.

        Args:
            images: See `as_images`.
        """
        parts = [self.posterior(self.prepare(part.to(self.device))) for part in self._parts(images)]
        means, log_variances = zip(*parts, strict=True)
        return Posterior(torch.cat(means).cpu(), torch.cat(log_variances).cpu())

    def complete(self, data: Split) -> None:
        """Train the flow on, alone, and fit the other densities of z."""
        flow = self.priors["standard_normal"]
        if isinstance(flow, Flow):
            means, log_variances = self.encode_posterior(data.train.images)
            rng = generator(self.seed, Stream.POSTERIOR, 1)

            def draw(rows: Tensor) -> Tensor:
                return Posterior(means[rows], log_variances[rows]).sample(rng)

            flow.fit(draw, len(means), rng)
        super().complete(data)

    def latents_to_fit(self, images: Tensor) -> Tensor:
        """Draw a z for each image: the decoder has learnt from these and not from the means."""
        return self.encode_posterior(images).sample(generator(self.seed, Stream.POSTERIOR))

    def evaluate(self, data: Split) -> dict[str, float]:
        """Add the divergence, and the number of latent dimensions that the images use."""
        metrics = super().evaluate(data)
        rng = generator(self.seed, Stream.POSTERIOR)
        for part, images in (("train", data.train), ("val", data.val), ("test", data.test)):
            if len(images.labels):
                posterior = self.encode_posterior(images.images)
                with torch.no_grad():
                    divergence = self.divergence(posterior, posterior.sample(rng))
                metrics[f"{part}/kl"] = float(divergence)
        return metrics | {"test/active_units": self.active_units(data.test)}

    def active_units(self, data: Images) -> int:
        """Count the latent dimensions whose mean varies with the image."""
        return int((self.encode(data.images).var(0) > ACTIVE_VARIANCE).sum())

    def warnings(self, metrics: dict[str, float], baselines: dict[str, float]) -> list[str]:
        """Warn of posterior collapse, and of what an autoencoder warns of."""
        messages = super().warnings(metrics, baselines)
        active = int(metrics["test/active_units"])
        if metrics["test/loss"] > 1 or active >= self.latent_dim / 2:
            return messages
        number = "none" if active == 0 else f"only {active}"
        return [
            f"Posterior collapse: {number} of {self.latent_dim} latent dimensions vary with the"
            f" image. Lower model.beta ({self.beta:g}), or choose a smaller model.latent_dim.",
            *messages,
        ]

    def _training_advice(self) -> str:
        return f"{super()._training_advice()} A lower model.beta than {self.beta:g} restores more."

    def _generation_advice(self) -> str:
        advice = super()._generation_advice()
        if self.prior_name == "standard_normal" and not self.has_flow:
            return f"put a flow between N(0, I) and z, model.flow=8, or {advice}"
        return advice

    def summary(self) -> list[str]:
        """Add the layer of the log variances, which the decoder has no inverse of."""
        layer = f"{self.log_variance.in_features} -> {self.latent_dim}"
        return [*super().summary(), f"{'log s^2':<8} {layer:>24}"]
