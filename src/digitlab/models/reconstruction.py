"""What the models have in common that reconstruct images: their losses, and the baseline."""

from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from digitlab import figures
from digitlab.data.images import Images, Split, kind_of_image, scale, to_array
from digitlab.data.loaders import Chunks
from digitlab.formatting import format_loss
from digitlab.models import baselines
from digitlab.models.base import Model, sentence

# The images that a figure of the errors shows.
MAX_HARDEST = 12


class ReconstructionModel(Model):
    """A model whose loss is the mean squared error over pixels and images."""

    loss_label = "mean squared error per pixel"

    def reconstruct(self, images: Any) -> Tensor:
        """Reconstruct images, see `as_images`; float on the CPU, in the layout of the images."""
        raise NotImplementedError

    def measure_losses(self, data: Images) -> tuple[float, Tensor]:
        """Compute the mean loss, and the loss of each image, float (N,) on the CPU."""
        total, losses = 0.0, []
        for chunk in Chunks(data):
            difference = self.reconstruct(chunk.images) - scale(chunk.images.cpu())
            squared = difference.square_()
            total += float(squared.double().sum())
            losses.append(squared.mean((1, 2, 3)))
        return total / (len(data.labels) * self.pixels), torch.cat(losses)

    def draw_errors(
        self, images: Images, part: str, data: Split, losses: Tensor | None = None
    ) -> Figure:
        """Draw the loss by class and the hardest images.

        Args:
            images: The images.
            part: What they are called, as "test".
            data: The split, for the baseline and the names of the classes.
            losses: The loss of each image if it is known, see `measure_losses`.
        """
        if losses is None:
            _, losses = self.measure_losses(images)
        labels, classes = images.labels, data.classes
        hardest = losses.argsort(descending=True, stable=True)[:MAX_HARDEST]
        shown = images.take(hardest)
        titles = []
        for i in hardest.tolist():
            titles.append(f"{figures.short(classes[labels[i]])}\n{format_loss(float(losses[i]))}")
        return figures.errors(
            mean_by_class(losses, labels, len(classes)).tolist(),
            float(losses.mean()),
            float(baselines.mean_image_losses(data.train, images.images).mean()),
            classes,
            to_array(scale(shown.images)),
            to_array(self.reconstruct(shown.images)),
            titles,
            f"Errors on {len(losses):,} {part} {kind_of_image(classes)}, {self.heading}",
        )

    def baselines(self, data: Split) -> dict[str, float]:
        """Compute the loss of the mean image."""
        return {"mean_image": baselines.mean_image(data)}

    def warnings(self, metrics: dict[str, float], baselines: dict[str, float]) -> list[str]:
        """Warn of a loss that no pixels can have, which makes other warnings meaningless."""
        if metrics["test/loss"] <= 1:
            return []
        remedy = sentence(self.smaller_steps())
        return [f"The loss exploded: pixels cannot differ by more than 1. {remedy}"]


def mean_by_class(losses: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """The mean loss of each class, float64 (n_classes,); NaN for a class without images."""
    sums = torch.zeros(n_classes, dtype=torch.double).index_add_(0, labels, losses.double())
    return sums / torch.bincount(labels, minlength=n_classes)
