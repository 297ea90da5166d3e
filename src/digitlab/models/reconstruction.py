"""What the models have in common that reconstruct images: their loss and its baseline."""

from digitlab.data.images import Split
from digitlab.models import baselines
from digitlab.models.base import Model, sentence


class ReconstructionModel(Model):
    """A model whose loss is the mean squared error over pixels and images."""

    loss_label = "mean squared error per pixel"

    def baselines(self, data: Split) -> dict[str, float]:
        """Compute the loss of the mean image."""
        return {"mean_image": baselines.mean_image(data)}

    def warnings(self, metrics: dict[str, float], baselines: dict[str, float]) -> list[str]:
        """Warn of a loss that no pixels can have, which makes other warnings meaningless."""
        if metrics["test/loss"] <= 1:
            return []
        remedy = sentence(self.smaller_steps())
        return [f"The loss exploded: pixels cannot differ by more than 1. {remedy}"]
