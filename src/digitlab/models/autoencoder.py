"""A convolutional autoencoder whose decoder inverts its encoder stage by stage.

Encoder stage i is a 3 x 3 convolution of stride 2 to channels[i]; 28 x 28 becomes 14, 7, 4, 2, 1. Then the
tensor is flattened, optionally mixed by a dense layer, and mapped to the latent z. The decoder runs the same
stages backwards, each transposed convolution restoring exactly the size that its counterpart took away.
The loss is the mean squared error over pixels and images. B images, C channels, H x W pixels, Z latents.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from digitlab import figures
from digitlab.data.images import IMAGE_SHAPE, PIXELS, Images, Source, Split, scale
from digitlab.data.loaders import Batch, Chunks
from digitlab.formatting import format_loss
from digitlab.models.base import Model
from digitlab.models.digit_classifier import load_or_train, score_samples
from digitlab.models.prior import Prior
from digitlab.runs.results import is_no_better
from digitlab.runtime.seeds import Stream, generator

SCORED = 10_000  # samples that a score stands on; 20 are only shown
ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "hardswish": nn.Hardswish}
OUTPUTS = {"sigmoid": nn.Sigmoid, "linear": nn.Identity}


def sizes(layers: int) -> list[int]:
    """Edge lengths before and after each of so many stride-2 convolutions: 28, 14, 7, 4, 2, 1."""
    edges = [IMAGE_SHAPE[0]]
    for _ in range(layers):
        edges.append((edges[-1] + 1) // 2)
    return edges


class Stages(nn.Sequential):
    """Named stages in the order they are applied."""

    def shapes(self, x: Tensor) -> list[tuple[str, tuple[int, ...]]]:
        """Each stage's name with the shape of one image's tensor after it, by running x (1, ...) through."""
        found = []
        for name, stage in self.named_children():
            x = stage(x)
            found.append((name, tuple(x.shape[1:])))
        return found


def build(
    channels: Sequence[int], latent_dim: int, hidden: int | None, norm: str, activation: str, output: str
) -> tuple[Stages, Stages]:
    """The encoder (B, 1, 28, 28) -> (B, Z) and the decoder back, stage k of one inverting stage k of the other.

    `output` is what the decoder's last stage ends in: a sigmoid, or nothing (linear).
    """
    edges = sizes(len(channels))
    flat = channels[-1] * edges[-1] ** 2

    def normalized(width: int) -> bool:
        return norm == "group" and width > 1  # a group of one number would be normalised to nothing

    def after(layer: nn.Module, width: int, *, image: bool) -> nn.Sequential:
        # Groups of 16 channels where they divide: unlike batch normalisation it treats each image by itself,
        # so that training, evaluation and DDP compute the same.
        groups = width // 16 if width % 16 == 0 else 1
        extra = [nn.GroupNorm(groups, width)] if image and normalized(width) else []
        return nn.Sequential(layer, *extra, ACTIVATIONS[activation]())

    encoder, decoder = Stages(), Stages()
    down: list[tuple[str, nn.Module]] = []
    up: list[tuple[str, nn.Module]] = []  # from the image inwards; applied in reverse
    for i, (before, width) in enumerate(zip([1, *channels], channels, strict=False)):
        name = f"conv{i + 1}"
        # No bias where a normalisation adds its own: the gradient of a transposed convolution's is slow on CPUs.
        shrink = nn.Conv2d(before, width, 3, stride=2, padding=1, bias=not normalized(width))
        down.append((name, after(shrink, width, image=True)))
        padding = edges[i] - (2 * edges[i + 1] - 1)  # 0 or 1: the row that an even edge had more
        bias = not normalized(before)
        grow = nn.ConvTranspose2d(width, before, 3, stride=2, padding=1, output_padding=padding, bias=bias)
        up.append((name, after(grow, before, image=True) if i else nn.Sequential(grow, OUTPUTS[output]())))
    down.append(("flatten", nn.Flatten()))
    up.append(
        ("flatten", nn.Sequential(ACTIVATIONS[activation](), nn.Unflatten(1, (channels[-1], edges[-1], edges[-1]))))
    )
    if hidden is not None:
        down.append(("dense", after(nn.Linear(flat, hidden), hidden, image=False)))
        up.append(("dense", nn.Linear(hidden, flat)))
    down.append(("latent", nn.Linear(hidden or flat, latent_dim)))
    grow_latent: nn.Module = nn.Linear(latent_dim, hidden or flat)
    up.append(("latent", after(grow_latent, hidden, image=False) if hidden is not None else grow_latent))
    for name, stage in down:
        encoder.add_module(name, stage)
    for name, stage in reversed(up):
        decoder.add_module(name, stage)
    return encoder, decoder


class ShapeRow(NamedTuple):
    """An encoder stage and, on its line, the decoder stage that inverts it: shapes without the batch."""

    name: str
    inside: tuple[int, ...]  # after the encoder stage and before the decoder stage
    outside: tuple[int, ...]  # before the encoder stage and after the decoder stage


class Autoencoder(Model):
    """Encoder, decoder, and the densities that z can be drawn from."""

    bf16 = True

    def __init__(
        self,
        channels: list[int],
        latent_dim: int,
        hidden: int | None,
        norm: str,
        activation: str,
        output: str,
        channels_last: bool,
        compile: bool,
        prior: dict[str, Any],
        optimizer: dict[str, Any],
        scheduler: dict[str, Any],
        seed: int,
    ) -> None:
        super().__init__(optimizer, scheduler, seed)
        self.save_hyperparameters(logger=False)
        self.latent_dim, self.prior_name = latent_dim, prior["name"]
        self.encoder, self.decoder = build(channels, latent_dim, hidden, norm, activation, output)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.memory_format)
        standard = Prior(1, latent_dim, fitted=True)
        self.priors = nn.ModuleDict({"standard_normal": standard, "gaussian": Prior(1, latent_dim)})
        if self.prior_name == "mixture":
            self.priors["mixture"] = Prior(prior["n_components"], latent_dim, prior["temperature"])
        self.compiled = compile

    def setup(self, stage: str) -> None:
        """Compile in place, so that the weights keep their names."""
        if stage == "fit" and self.compiled:
            self.encoder.compile()
            self.decoder.compile()

    def prepare(self, images: Tensor) -> Tensor:
        """Uint8 (B, 28, 28) as float (B, 1, 28, 28) in [0, 1], in the memory format of the convolutions."""
        return scale(images)[:, None].contiguous(memory_format=self.memory_format)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct x (B, 1, 28, 28)."""
        reconstruction: Tensor = self.decoder(self.encoder(x))
        return reconstruction

    def loss(self, batch: Batch) -> Tensor:
        """The minibatch's mean squared error, a process's part so weighted that DDP's mean over processes gives it."""
        x = self.prepare(batch.images)
        loss: Tensor = (self(x).float() - x).square().sum() * (self.trainer.world_size / (batch.total * PIXELS))
        return loss

    def validation_step(self, chunk: Batch, _: int) -> None:
        """Log the loss of held-out images."""
        distributed = self.trainer.world_size > 1
        self.log("val/loss", self.loss(chunk), batch_size=chunk.total, sync_dist=distributed)

    # -- after training -----------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, data: Images) -> Tensor:
        """The latents of images, float (N, Z) on the CPU."""
        chunks = [self.encoder(self.prepare(chunk.images.to(self.device))).float().cpu() for chunk in Chunks(data)]
        return torch.cat(chunks)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """The images of latents (N, Z), float (N, 28, 28) clipped to [0, 1], on the CPU."""
        parts = [self.decoder(part.to(self.device)).float().cpu()[:, 0] for part in z.split(1000)]
        return torch.cat(parts).clamp_(0, 1)

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Images (N, 28, 28), uint8, through encoder and decoder: float on the CPU."""
        restored: Tensor = self(self.prepare(images.to(self.device)))
        return restored.float().cpu()[:, 0]

    def mean_loss(self, data: Images) -> float:
        """The mean squared error over pixels and images."""
        total = 0.0
        for chunk in Chunks(data):
            total += float((self.reconstruct(chunk.images) - scale(chunk.images.cpu())).square().double().sum())
        return total / (len(data.labels) * PIXELS)

    def to_fit(self) -> list[Prior]:
        """The densities that training images' latents are to give."""
        return [prior for name, prior in self.priors.items() if name != "standard_normal" and isinstance(prior, Prior)]

    def require(self, data: Split) -> None:
        """Raise ValueError for fewer training images than a density needs, or fewer test images than a score does."""
        for prior in self.to_fit():
            prior.require(len(data.train.labels))
        if len(data.test.labels) < 2:
            raise ValueError("the Frechet distance needs two test images or more, here is one")

    def complete(self, data: Split) -> None:
        """Fit the densities that z can be drawn from to the training images' latents."""
        latents = self.encode(data.train)
        for prior in self.to_fit():
            prior.fit(latents, self.seed)

    def generate(self, n: int, seed: int, prior: str | None = None) -> Tensor:
        """Digits decoded from random z, float (n, 28, 28) in [0, 1]; by default from the prior of the configuration.

        Raises ValueError for a prior that the run did not fit.
        """
        name = prior or self.prior_name
        if name not in self.priors:
            raise ValueError(f"prior={name}: this run has {', '.join(self.priors)}; train one with prior={name}")
        chosen = self.priors[name]
        assert isinstance(chosen, Prior)
        return self.decode(chosen.sample(n, generator(seed, Stream.PRIOR)))

    def evaluate(self, source: Source, data: Split) -> dict[str, float]:
        """Losses of each part, and how generated digits look to the judge: 10,000, of a smaller data set as many."""
        metrics = {"train/loss": self.mean_loss(data.train)}
        if len(data.val.labels):
            metrics["val/loss"] = self.mean_loss(data.val)
        metrics["test/loss"] = self.mean_loss(data.test)
        samples = self.generate(min(SCORED, len(data.train.labels)), self.seed)
        used = len(data.train.labels) + len(data.val.labels)
        arbiter = load_or_train(source, train_size=used)
        self.judged_by = arbiter.identity
        scores = score_samples(arbiter, samples, data.train, data.test)
        return metrics | {f"generated/{name}": value for name, value in scores.items()}

    def warnings(self, metrics: dict[str, float], baselines: dict[str, float]) -> list[str]:
        """A sentence where generation fails although reconstruction does not, or where PCA does better."""
        loss, found, advice = metrics["test/loss"], [], "Train longer"
        best = {"optimizer": "adamw", "scheduler": "one_cycle"}
        now = {"optimizer": self.optimizer["name"], "scheduler": self.scheduler["name"]}
        if changes := [f"{group}={name}" for group, name in best.items() if now[group] != name]:
            advice += f", or try {' '.join(changes)} (experiment=autoencoder_best)"
        if is_no_better(loss, baselines["mean_image"]):
            return [
                "The decoder ignores the image: at best it paints the mean of all (the seed report's white fog)."
                f" {advice}."
            ]
        if is_no_better(loss, baselines["pca"]):
            found.append(
                f"No better than PCA with the same {self.latent_dim} numbers an image: test loss"
                f" {format_loss(loss)}, PCA {format_loss(baselines['pca'])}. {advice}."
            )
        told, real = metrics["generated/recognized"], metrics["generated/recognized_real"]
        if real < 0.5:
            found.append(
                f"The judge of generated digits recognises only {real:.0%} of real ones: generated/... say little here."
                " It learns from all training images; more of them may help."
            )
        elif told < 0.5 * real:
            remedy = "draw z from where the encoder puts the data, prior=mixture"
            if self.prior_name == "gaussian":
                remedy = "follow the shape of the data's latents, prior=mixture"
            elif self.prior_name == "mixture":
                remedy = "the autoencoder itself is too coarse, or model.prior.n_components too few"
            found.append(
                f"Only {told:.0%} of the generated digits are recognised ({real:.0%} of real ones) with z from"
                f" {self.prior_name.replace('_', ' ')}: {remedy}."
            )
        return found

    def pictures(self) -> dict[str, Tensor | Figure]:
        """Reconstructions beside their originals, generated digits and the latents' map, of images not tested on."""
        training = self.training
        self.eval()
        data = self.batches.val if len(self.batches.val.labels) > 1 else self.batches.train
        some = data.take(torch.arange(min(1000, len(data.labels)), device=data.labels.device))
        originals = scale(some.images[:10])
        pairs = torch.stack([originals.cpu(), self.reconstruct(some.images[:10])], dim=1).flatten(0, 1)
        latents = self.encode(some)
        prior = Prior(1, self.latent_dim, fitted=True)  # of a mixture only the moments: its fit takes seconds
        if self.prior_name != "standard_normal":
            prior.fit(latents, self.seed)
        digits = self.decode(prior.sample(20, generator(self.seed, Stream.PRIOR)))
        self.train(training)
        return {
            "reconstructions": pairs[:, None],
            "generated": digits[:, None],
            "latents": figures.latents(latents.numpy(), some.labels.cpu().numpy(), "Latents"),
        }

    def shape_table(self) -> list[ShapeRow]:
        """The stages as built, from the image to the latent, measured by running one image through."""
        training = self.training
        self.eval()
        with torch.no_grad():
            x = torch.zeros(1, 1, *IMAGE_SHAPE, device=self.device)
            down = self.encoder.shapes(x)
            up = self.decoder.shapes(self.encoder(x))[::-1]
        self.train(training)
        inside = [shape for _, shape in down]
        outside = [(1, *IMAGE_SHAPE), *inside[:-1]]
        for (name, _), (inverse, restored), before in zip(down, up, outside, strict=True):
            assert (inverse, restored) == (name, before), "a decoder stage does not invert its encoder stage"
        return [ShapeRow(name, i, o) for (name, _), i, o in zip(down, inside, outside, strict=True)]
