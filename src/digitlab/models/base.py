"""The base class of the models: a LightningModule and what the laboratory asks of it."""

import math
import tempfile
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from digitlab.data.images import Split
from digitlab.data.loaders import EvaluationBatches, MNISTData
from digitlab.models.optimizers import make_optimizer, make_scheduler
from digitlab.runs.results import Objective
from digitlab.runtime.trainer import make_trainer

# Lightning 2.6 uses a name that torch 2.13 deprecates; users can do nothing about it.
warnings.filterwarnings("ignore", message=r".*LeafSpec.*", module=r"lightning\.pytorch")
# Record takes the mean over processes of all that is logged by epoch; Lightning's sync_dist rounds
# the number of images to an integer.
warnings.filterwarnings("ignore", message=r"It is recommended to use `self\.log\(.*sync_dist=True")


class Model(LightningModule):
    """A LightningModule, and what the laboratory asks of it; all of that has a default.

    A model defines `training_step(self, batch, index)` and `validation_step(self, batch, index)`
    with `images, labels = batch`: float32 (B, C, H, W) in [0, 1] and int64 (B,). They log by epoch
    what they measure, the objective among it. The arguments of the constructor are the values of
    its YAML; it passes the others on:

        def __init__(self, width: int, **options: Any) -> None:
            super().__init__(**options)

    Args:
        optimizer: The values of the config group `optimizer`.
        scheduler: The values of the config group `scheduler`.
        seed: The seed of all random streams.
        image_shape: The shape (C, H, W) of an image; by default MNIST's, which checkpoints that do
            not name it were trained on.
        n_classes: The number of classes, likewise.
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
    block_steps = 0
    # The name of the run and its test result, for the headings of `figures`; set before it.
    heading = ""
    # The digit classifier that scored the generated images; `evaluate` sets it.
    classifier_id: str | None = None

    def __init__(
        self,
        *,
        optimizer: dict[str, Any],
        scheduler: dict[str, Any],
        seed: int,
        image_shape: Sequence[int] = (1, 28, 28),
        n_classes: int = 10,
    ) -> None:
        super().__init__()
        # The numbers of an image, over all its channels.
        self.pixels = math.prod(image_shape)
        self.optimizer, self.scheduler, self.seed = optimizer, scheduler, seed
        self.image_shape, self.n_classes = tuple(image_shape), n_classes

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

    def summary(self) -> list[str]:
        """Lines to log before training, such as a table of the layers."""
        return []

    def baselines(self, data: Split) -> dict[str, float]:
        """Compute trivial rivals of the objective's metric on the test images, by name.

        A run warns if it does not beat the first one. Messages put "the" before a name, as in "no
        better than the majority class" for `majority_class`.
        """
        return {}

    def complete(self, data: Split) -> None:
        """Finish the best checkpoint once after training; the default does nothing."""

    def evaluate(self, data: Split) -> dict[str, float]:
        """Compute the metrics of the finished model; only here does a model see the test images.

        What it returns adds to the metrics that the best epoch logged. By default these are the
        metrics of `validation_step` on the held-out images, and those of `test_step` on the test
        images; without a test_step those of `validation_step`, with test/... in place of val/...
        """
        return step_metrics(self, data)

    def warnings(self, metrics: dict[str, float], baselines: dict[str, float]) -> list[str]:
        """Describe each problem of the finished model and its remedy, one message each.

        A run that is no better than the first baseline is warned of without it.
        """
        return []

    def figures(self, data: Split) -> dict[str, Figure]:
        """Draw the figures of the finished model, by file name without suffix."""
        return {}

    def write_files(self, data: Split, directory: Path, writer: SummaryWriter) -> None:
        """Write other files of the finished model, or log to TensorBoard; before `figures`."""

    def smaller_steps(self) -> str:
        """How to take smaller steps, as a clause without capital and full stop."""
        options = getattr(self, "optimizer", None)
        if not isinstance(options, dict):
            return "lower the learning rate"
        return "lower optimizer.lr" if "lr" in options else "choose optimizer=sgd and lower its lr"

    def steadier_steps(self) -> str:
        """How to take smaller steps, or to add a decay if there is none yet."""
        smaller, schedule = trait(self, "smaller_steps")(), getattr(self, "scheduler", None)
        if isinstance(schedule, dict) and schedule.get("name") == "constant":
            return f"{smaller}, or let it decay (scheduler=linear)"
        return str(smaller)

    def pictures(self) -> dict[str, Tensor | Figure]:
        """Pictures to log after each epoch: figures, or images (N, C, H, W) in [0, 1]."""
        return {}


def trait(model: LightningModule, name: str) -> Any:
    """An attribute or a method of `Model`; the default for any other LightningModule.

    Such a module may use the same name for something else.
    """
    if isinstance(model, Model):
        return getattr(model, name)
    default = getattr(Model, name)
    return partial(default, model) if callable(default) else default


def find_objective(model: LightningModule) -> Objective:
    """The objective of a model: by default the loss on held-out images.

    Raises:
        ValueError: It is not the name of a metric and its direction.
    """
    return Objective(*trait(model, "objective"))


def step_metrics(model: LightningModule, data: Split) -> dict[str, float]:
    """Run Lightning's validation and test loops; see `Model.evaluate`."""
    has_validation, has_test = (
        is_overridden(name, model) for name in ("validation_step", "test_step")
    )
    metrics: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(Path(folder), accelerator="cpu", enable_checkpointing=False)
        if has_validation and len(data.val.labels):
            metrics |= trainer.validate(model, EvaluationBatches(data.val), verbose=False)[0]
        if has_test:
            metrics |= trainer.test(model, EvaluationBatches(data.test), verbose=False)[0]
        elif has_validation:
            (logged,) = trainer.validate(model, EvaluationBatches(data.test), verbose=False)
            metrics |= {f"test/{key.removeprefix('val/')}": logged[key] for key in logged}
    return metrics


def sentence(clause: str) -> str:
    """Add a capital and a full stop."""
    return f"{clause[0].upper()}{clause[1:]}."
