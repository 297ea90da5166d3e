"""A convolutional autoencoder, and the densities that its latents z can be drawn from.

See `convolutional` for the encoder and the decoder. The loss is the mean squared error over pixels
and images. B images, C channels, H x W pixels, Z latent dimensions.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from digitlab import figures
from digitlab.data.images import (
    Images,
    Split,
    as_images,
    in_layout,
    kind_of_image,
    scale,
    to_array,
)
from digitlab.formatting import format_loss
from digitlab.models import baselines
from digitlab.models.convolutional import build_stages
from digitlab.models.digit_classifier import load_or_train, score_samples
from digitlab.models.latent_walks import draw_walks
from digitlab.models.prior import Prior
from digitlab.models.reconstruction import ReconstructionModel
from digitlab.registry import register_model
from digitlab.runs.results import is_no_better
from digitlab.runtime.seeds import Stream, generator

# Samples that the generated/... metrics are computed from.
SCORED_SAMPLES = 10_000
# The choices of good experiments; warnings recommend the first ones.
GOOD_CHOICES = {"optimizer": ("muon", "adamw"), "scheduler": ("one_cycle_linear", "one_cycle")}


class ShapeRow(NamedTuple):
    """An encoder stage and the decoder stage that inverts it, with shapes without the batch."""

    name: str
    # After the encoder stage and before the decoder stage.
    inner: tuple[int, ...]
    # Before the encoder stage and after the decoder stage.
    outer: tuple[int, ...]


def mean_squared_error(restored: Tensor, x: Tensor) -> Tensor:
    """The mean squared error over pixels and images."""
    squared: Tensor = (restored.float() - x).square().sum()
    return squared * (1 / x.numel())


@register_model("autoencoder")
class Autoencoder(ReconstructionModel):
    """Encoder, decoder, and the densities that z can be drawn from.

    Args:
        channels, latent_dim, hidden, norm, activation, output: See `build_stages`.
        channels_last: Whether images and weights have torch's memory format channels_last.
        compile: Whether to train with torch.compile.
        prior: The values of conf/prior.
        **options: See `Model`.
    """

    bf16 = True
    # The experiment that warnings recommend.
    best_experiment = "autoencoder_best"

    def __init__(
        self,
        channels: list[Any],
        latent_dim: int,
        hidden: Any,
        norm: str,
        activation: str,
        output: str,
        channels_last: bool,
        compile: bool,
        prior: dict[str, Any],
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.latent_dim, self.prior_name = latent_dim, prior["name"]
        self.encoder, self.decoder = build_stages(
            self.image_shape, channels, latent_dim, hidden, norm, activation, output
        )
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.memory_format)
        self.priors = nn.ModuleDict(
            {
                "standard_normal": Prior(1, latent_dim, fitted=True),
                "gaussian": Prior(1, latent_dim),
            }
        )
        if self.prior_name == "mixture":
            self.priors["mixture"] = Prior(prior["n_components"], latent_dim, prior["temperature"])
        self.compiled = compile
        # The loss of each image that figures show, set by `evaluate`.
        self.unseen_losses: Tensor | None = None

    def setup(self, stage: str) -> None:
        """Compile in place, which leaves the names of the weights unchanged."""
        if stage == "fit" and self.compiled:
            self.encoder.compile()
            self.decoder.compile()

    def prepare(self, images: Tensor) -> Tensor:
        """Convert (B, C, H, W) to float in [0, 1], in the memory format."""
        return scale(images).contiguous(memory_format=self.memory_format)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct x (B, C, H, W)."""
        reconstruction: Tensor = self.decoder(self.encoder(x))
        return reconstruction

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Compute and log the loss of a minibatch."""
        loss = self._loss(batch)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Log the loss of held-out images."""
        self.log("val/loss", self._loss(batch))

    def _loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x = self.arrange(batch)
        return mean_squared_error(self(x), x)

    def arrange(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the images of a minibatch in the memory format."""
        images, _ = batch
        return images.contiguous(memory_format=self.memory_format)

    def _parts(self, images: Any) -> Sequence[Tensor]:
        """The images of a user in parts as large as 2,048 of MNIST's."""
        pixels, size = as_images(images, self.image_shape), max(1, 2048 * 784 // self.pixels)
        parts: Sequence[Tensor] = pixels.split(size)
        return parts

    @torch.no_grad()
    def encode(self, images: Any) -> Tensor:
        """Compute the latents of images, float (N, Z) on the CPU.

        Args:
            images: See `as_images`.
        """
        parts = []
        for part in self._parts(images):
            parts.append(self.encoder(self.prepare(part.to(self.device))).float().cpu())
        return torch.cat(parts)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Compute the images of latents (N, Z), float (N, C, H, W) in [0, 1], on the CPU."""
        # As many images as a thousand of MNIST's are large.
        size = max(1, 1000 * 784 // self.pixels)
        parts = [self.decoder(part.to(self.device)).float().cpu() for part in z.split(size)]
        return torch.cat(parts).clamp_(0, 1)

    @torch.no_grad()
    def reconstruct(self, images: Any) -> Tensor:
        """Encode and decode images; float on the CPU, in the layout of the images.

        Args:
            images: See `as_images`.
        """
        parts = []
        for part in self._parts(images):
            parts.append(self(self.prepare(part.to(self.device))).float().cpu())
        return in_layout(torch.cat(parts), images)

    def mean_loss(self, data: Images) -> float:
        """Compute the mean squared error over pixels and images."""
        return self.measure_losses(data)[0]

    def priors_to_fit(self) -> list[Prior]:
        """The densities that are fitted to the latents of the training images."""
        priors = []
        for name, prior in self.priors.items():
            if name != "standard_normal":
                assert isinstance(prior, Prior)
                priors.append(prior)
        return priors

    def check_data(self, data: Split) -> None:
        """Raise ValueError if the images are too few for the densities or for the scores."""
        for prior in self.priors_to_fit():
            prior.check_size(len(data.train.labels))
        if len(data.test.labels) < 2:
            raise ValueError(
                "data.test_size: the Frechet distance needs two test images or more, here is one"
            )

    def baselines(self, data: Split) -> dict[str, float]:
        """Compute the losses of the mean image, and of PCA with the same latent size."""
        return super().baselines(data) | {"pca": baselines.pca(data, self.latent_dim)}

    def complete(self, data: Split) -> None:
        """Fit the densities of z to the latents of the training images."""
        latents = self.latents_to_fit(data.train.images)
        for prior in self.priors_to_fit():
            prior.fit(latents, self.seed)

    def latents_to_fit(self, images: Tensor) -> Tensor:
        """Compute the latents (N, Z) that the densities are fitted to."""
        return self.encode(images)

    def generate(self, n: int, seed: int, prior: str | None = None) -> Tensor:
        """Decode digits from random z.

        Args:
            n: The number of digits.
            seed: The seed of z.
            prior: The density of z; by default that of the configuration.

        Returns:
            The digits, float (n, C, H, W) in [0, 1] on the CPU.

        Raises:
            ValueError: The run did not fit this density.
        """
        name = prior or self.prior_name
        if name not in self.priors:
            available = ", ".join(self.priors)
            raise ValueError(f"prior={name}: this run has {available}; train one with prior={name}")
        density: Any = self.priors[name]
        return self.decode(density.sample(n, generator(seed, Stream.PRIOR)))

    def evaluate(self, data: Split) -> dict[str, float]:
        """Compute the losses, and the scores of 10,000 generated digits.

        With fewer training images, the number of generated digits is theirs.
        """
        metrics = {"train/loss": self.mean_loss(data.train)}
        held_out = None
        if len(data.val.labels):
            metrics["val/loss"], held_out = self.measure_losses(data.val)
        metrics["test/loss"], tested = self.measure_losses(data.test)
        self.unseen_losses = tested if held_out is None else held_out
        samples = self.generate(min(SCORED_SAMPLES, len(data.train.labels)), self.seed)
        train_size = len(data.train.labels) + len(data.val.labels)
        assert data.source is not None
        classifier = load_or_train(data.source, train_size=train_size)
        self.classifier_id = classifier.identity
        scores = score_samples(classifier, samples, data.train, data.test)
        return metrics | {f"generated/{name}": value for name, value in scores.items()}

    def warnings(self, metrics: dict[str, float], baselines: dict[str, float]) -> list[str]:
        """Warn if the model does not beat the baselines, or reconstructs but does not generate."""
        if exploded := super().warnings(metrics, baselines):
            return exploded
        loss, advice = metrics["test/loss"], self._training_advice()
        if is_no_better(loss, baselines["mean_image"]):
            return [
                "The decoder ignores the image: at best it outputs the mean image"
                f" (the seed report's white fog). {advice}"
            ]
        messages = []
        if is_no_better(loss, baselines["pca"]):
            messages.append(
                f"No better than PCA with the same {self.latent_dim} numbers an image: test loss"
                f" {format_loss(loss)}, PCA {format_loss(baselines['pca'])}. {advice}"
            )
        recognized, real = metrics["generated/recognized"], metrics["generated/recognized_real"]
        if real < 0.5:
            messages.append(
                f"The digit classifier recognises only {real:.0%} of real digits: the generated/..."
                " metrics mean little. It learns from all training images; more of them may help."
            )
        elif recognized < 0.5 * real:
            messages.append(
                f"Only {recognized:.0%} of the generated digits are recognised ({real:.0%} of real"
                f" ones) with z from {self.prior_name.replace('_', ' ')}:"
                f" {self._generation_advice()}."
            )
        return messages

    def _training_advice(self) -> str:
        """The settings that give a lower loss and that the run does not have already."""
        current = {"optimizer": self.optimizer["name"], "scheduler": self.scheduler["name"]}
        changes = [
            f"{group}={names[0]}"
            for group, names in GOOD_CHOICES.items()
            if current[group] not in names
        ]
        if not changes:
            return "Train longer."
        return f"Train longer, or try {' '.join(changes)} (experiment={self.best_experiment})."

    def _generation_advice(self) -> str:
        """How to generate better digits with the same reconstructions."""
        match self.prior_name:
            case "mixture":
                return "the autoencoder itself is too coarse, or model.prior.n_components too few"
            case "gaussian":
                return "follow the shape of the data's latents, prior=mixture"
            case _:
                return "draw z from where the encoder puts the data, prior=mixture"

    def pictures(self) -> dict[str, Tensor | Figure]:
        """Reconstructions next to their originals, generated digits and a map of the latents.

        The images are held out, or training images if none are; never test images.
        """
        training = self.training
        self.eval()
        data = self.datamodule.val if len(self.datamodule.val.labels) > 1 else self.datamodule.train
        sample = data.take(torch.arange(min(1000, len(data.labels)), device=data.labels.device))
        originals = scale(sample.images[:10]).cpu()
        restored = self.reconstruct(sample.images[:10])
        pairs = torch.stack([originals, restored], dim=1).flatten(0, 1)
        latents = self.encode(sample.images)
        prior: Any = self.priors["standard_normal"]
        if self.prior_name != "standard_normal":
            # A mixture takes seconds to fit; its moments suffice here.
            prior = Prior(1, self.latent_dim)
            prior.fit(self.latents_to_fit(sample.images), self.seed)
        digits = self.decode(prior.sample(20, generator(self.seed, Stream.PRIOR)))
        self.train(training)
        return {
            "reconstructions": pairs,
            "generated": digits,
            "latents": figures.latents(
                latents.numpy(), sample.labels.cpu().numpy(), "Latents", self.datamodule.classes
            ),
        }

    def write_files(self, data: Split, directory: Path, writer: SummaryWriter) -> None:
        """Write latents of unseen images for TensorBoard's projector."""
        sample, _ = _take_unseen(data)
        latents = self.encode(sample.images[:1000])
        # The projector would add to the files of an earlier evaluation of this run, with a warning.
        shutil.rmtree(directory / "00000" / "latents", ignore_errors=True)
        (directory / "projector_config.pbtxt").unlink(missing_ok=True)
        names = [data.classes[label] for label in sample.labels[:1000].tolist()]
        sprites = scale(sample.images[:1000]).expand(-1, 3, -1, -1)
        writer.add_embedding(latents, names, sprites, tag="latents")

    def figures(self, data: Split) -> dict[str, Figure]:
        """Draw the stages, the errors, the latents, and images that are restored or generated."""
        sample, part = _take_unseen(data)
        originals = to_array(scale(sample.images[:30]))
        restored = to_array(self.reconstruct(sample.images[:30]))
        digits = to_array(self.generate(20, self.seed))
        latents, labels = self.encode(sample.images), sample.labels.numpy()
        prior, title = self.prior_name.replace("_", " "), self.heading
        kind = kind_of_image(data.classes)
        return {
            "shapes": figures.shapes(self.shape_table(), "Tensors from image to latent and back"),
            "reconstructions": figures.reconstructions(
                originals, restored, f"{part.capitalize()} {kind} restored, {title}"
            ),
            "generated": figures.image_grid(
                digits, None, 10, f"Decoded from random z ({prior}), {title}"
            ),
            "latents": figures.latents(
                latents.numpy(), labels, f"Latents of {part} {kind}, {title}", data.classes
            ),
            "errors": self.draw_errors(*_unseen(data), data, self.unseen_losses),
            **draw_walks(self.decode, latents, sample, part, data.classes, title),
        }

    def summary(self) -> list[str]:
        """Each encoder stage with the decoder stage that inverts it."""
        lines = [f"{'stage':<8} {'encoder':>24}    decoder"]
        for name, inside, outside in self.shape_table():
            before, after = ("x".join(map(str, shape)) for shape in (outside, inside))
            lines.append(f"{name:<8} {f'{before} -> {after}':>24}    {after} -> {before}")
        return lines

    def shape_table(self) -> list[ShapeRow]:
        """The stages from the image to the latent, with shapes measured by running an image."""
        training = self.training
        self.eval()
        with torch.no_grad():
            x = torch.zeros(1, *self.image_shape, device=self.device)
            encoder_shapes = self.encoder.shapes(x)
            decoder_shapes = self.decoder.shapes(self.encoder(x))
        self.train(training)
        rows = []
        outer: tuple[int, ...] = self.image_shape
        for (name, inner), inverse in zip(encoder_shapes, decoder_shapes[::-1], strict=True):
            assert inverse == (name, outer), "a decoder stage does not invert its encoder stage"
            rows.append(ShapeRow(name, inner, outer))
            outer = inner
        return rows


def _unseen(data: Split) -> tuple[Images, str]:
    """The held-out images, or the test images if none are held out, and which they are."""
    return (data.val, "held-out") if len(data.val.labels) else (data.test, "test")


def _take_unseen(data: Split) -> tuple[Images, str]:
    """The first 2,000 of the unseen images, and which they are."""
    images, part = _unseen(data)
    return images.take(torch.arange(min(2000, len(images.labels)))), part
