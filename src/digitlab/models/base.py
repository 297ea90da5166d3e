"""The base class of the models: a LightningModule and what the laboratory asks of it."""

import logging
import warnings
from typing import Any

from lightning.pytorch import LightningModule
from matplotlib.figure import Figure
from torch import Tensor

from digitlab.data.images import Source, Split
from digitlab.data.loaders import MNISTData
from digitlab.models.optimizers import make_optimizer, make_scheduler
from digitlab.runs.results import Objective

# Lightning logs the same hints for every job and every checkpoint.
for library in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(library).setLevel(logging.WARNING)
# Lightning 2.6 uses a name that torch 2.13 deprecates; users can do nothing about it.
warnings.filterwarnings("ignore", message=r".*LeafSpec.*", module=r"lightning\.pytorch")


class Model(LightningModule):
    """A LightningModule with an evaluation, warnings and pictures.

    A model defines `training_step(self, batch, index)` and `validation_step(self, batch, index)`
    with `images, labels = batch`: float32 (B, C, H, W) in [0, 1] and int64 (B,).

    Args:
        optimizer: The values of the config group `optimizer`.
        scheduler: The values of the config group `scheduler`.
        seed: The seed of all random streams.
    """

    # The metric that selects the best epoch and ranks runs, and its direction, min or max. Without
    # held-out images, train/... takes the place of val/...
    objective: tuple[str, str] = ("val/loss", "min")
    # What the loss measures, for the axis of its figure.
    loss_label = "loss"
    # CPU threads to train with; None leaves torch's choice.
    threads: int | None = None
    # Whether trainer.precision=auto may choose bfloat16.
    bf16 = False
    # Minibatches in an item of the training loader, see `data.loaders.Batches`; 0 for single ones.
    block = 0
    # The digit classifier that scored the generated images; `evaluate` sets it.
    classifier_id: str | None = None

    def __init__(self, optimizer: dict[str, Any], scheduler: dict[str, Any], seed: int) -> None:
        super().__init__()
        self.optimizer, self.scheduler, self.seed = optimizer, scheduler, seed

    @property
    def datamodule(self) -> MNISTData:
        """The training and validation images of the current fit."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, MNISTData)
        return data

    def configure_optimizers(self) -> Any:
        """Make the optimizer, and its schedule over all steps of the run."""
        optimizer = make_optimizer(self.parameters(), **self.optimizer)
        total_steps = self.total_steps()
        scheduler = make_scheduler(optimizer, total_steps=total_steps, **self.scheduler)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}] if scheduler else []

    def total_steps(self) -> int:
        """The number of optimizer steps of the whole run."""
        return int(self.trainer.estimated_stepping_batches)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Under DDP, weight this process's loss by its share of the images of the minibatch.

        The mean of the gradients over processes is then that of the whole minibatch.
        """
        if self.trainer.world_size > 1:
            loader: Any = self.trainer.train_dataloader
            loss = loss * loader.weight(self.trainer.fit_loop.epoch_loop.batch_idx)
        super().backward(loss, *args, **kwargs)

    def check_data(self, data: Split) -> None:
        """Raise ValueError if the data is too small for `complete` or `evaluate`."""

    def baselines(self, data: Split) -> dict[str, float]:
        """Compute trivial rivals of the objective's metric on the test images, by name.

        The first one is what any model has to beat: a run that does not is told so in its log.
        A name is read after "the", as `majority_class` in "no better than the majority class".
        """
        return {}

    def complete(self, data: Split) -> None:
        """Finish the best checkpoint once after training; the default does nothing."""

    def evaluate(self, source: Source, data: Split) -> dict[str, float]:
        """Compute the metrics of the finished model; only here does a model see the test images."""
        raise NotImplementedError

    def warnings(self, metrics: dict[str, float], baselines: dict[str, float]) -> list[str]:
        """Describe each problem of the finished model and its remedy, one message each."""
        raise NotImplementedError

    def smaller_steps(self) -> str:
        """How to take smaller steps, as a clause without capital and full stop."""
        if "lr" in self.optimizer:
            return "lower optimizer.lr"
        return "choose optimizer=sgd and lower its lr"

    def steadier_steps(self) -> str:
        """How to take smaller steps, or to add a decay if there is none yet."""
        if self.scheduler["name"] == "constant":
            return f"{self.smaller_steps()}, or let it decay (scheduler=linear)"
        return self.smaller_steps()

    def pictures(self) -> dict[str, Tensor | Figure]:
        """Pictures to log after each epoch: figures, or images (N, 1, 28, 28) in [0, 1]."""
        return {}


def find_objective(model: LightningModule) -> Objective:
    """The objective of a model. Raises ValueError if it is not a metric and its direction."""
    return Objective(*getattr(model, "objective", Model.objective))


def sentence(clause: str) -> str:
    """Add a capital and a full stop."""
    return f"{clause[0].upper()}{clause[1:]}."
