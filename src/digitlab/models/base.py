"""The base class of the models: what training expects of them, and the loop over minibatches."""

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from matplotlib.figure import Figure
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from digitlab.data.images import Source, Split
from digitlab.data.loaders import Batch, MNISTData
from digitlab.models.optimizers import make_optimizer, make_scheduler

# Lightning logs the same hints for every job and every checkpoint.
for library in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(library).setLevel(logging.WARNING)
# Lightning 2.6 uses a name that torch 2.13 deprecates; users can do nothing about it.
warnings.filterwarnings("ignore", message=r".*LeafSpec.*", module=r"lightning\.pytorch")


class Model(LightningModule):
    """A LightningModule with an evaluation, warnings and pictures.

    The optimizer steps inside `training_step`, over a block of minibatches, since Lightning's own
    work for one step takes longer than the step of a small model.

    Args:
        optimizer: The values of the config group `optimizer`.
        scheduler: The values of the config group `scheduler`.
        seed: The seed of all random streams.
        image_shape: The shape (C, H, W) of an image; by default MNIST's, which checkpoints that do
            not name it were trained on.
        n_classes: The number of classes, likewise.
    """

    # Minibatches in one item of the training loader.
    block = 8
    # CPU threads to train with; None leaves torch's choice.
    threads: int | None = None
    # Whether trainer.precision=auto may choose bfloat16.
    bf16 = False
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
        self.automatic_optimization = False
        self.image_shape, self.n_classes = tuple(image_shape), n_classes
        # The numbers of an image, over all its channels.
        self.pixels = math.prod(self.image_shape)
        self.optimizer, self.scheduler, self.seed = optimizer, scheduler, seed
        # The sum of the losses of the epoch's images so far, and the number of these images.
        self.loss_sum: Tensor | float = 0.0
        self.n_images = 0

    def on_train_epoch_start(self) -> None:
        """Reset the epoch's mean loss."""
        self.loss_sum, self.n_images = 0.0, 0

    def accumulate_loss(self, loss: Tensor, images: int) -> None:
        """Add the mean loss of `images` images to the epoch's mean; log it after the last block.

        Lightning's own log would take as long for each minibatch as a step of k-means.
        """
        self.loss_sum = self.loss_sum + loss.detach() * images
        self.n_images += images
        if self.trainer.is_last_batch:
            self.log(
                "train/loss",
                self.loss_sum / self.n_images,
                on_step=False,
                on_epoch=True,
                batch_size=self.n_images,
                sync_dist=self.trainer.world_size > 1,
            )

    @property
    def datamodule(self) -> MNISTData:
        """The training and validation images of the current fit."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, MNISTData)
        return data

    def configure_optimizers(self) -> Any:
        """Make the optimizer, and its schedule over all minibatches of the run."""
        optimizer = make_optimizer(self.parameters(), **self.optimizer)
        total_steps = self.datamodule.steps * (self.trainer.max_epochs or 0)
        scheduler = make_scheduler(optimizer, total_steps=total_steps, **self.scheduler)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}] if scheduler else []

    def loss(self, batch: Batch) -> Tensor:
        """Compute the loss of one minibatch; for a model that is trained by autograd."""
        raise NotImplementedError

    def training_step(self, block: Batch, index: int) -> Tensor:
        """Take one optimizer step for each minibatch of the block; return their mean loss."""
        optimizer, scheduler = self.optimizer_and_scheduler()
        total = torch.zeros((), device=self.device)
        for batch in self.minibatches(block):
            loss = self.loss(batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            total += loss.detach() * batch.total
        mean = total / block.total
        self.accumulate_loss(mean, block.total)
        return mean

    def optimizer_and_scheduler(self) -> tuple[Any, LRScheduler | None]:
        """Return torch's own objects: Lightning's wrapper takes as long as a step of k-means."""
        scheduler = self.lr_schedulers()
        assert scheduler is None or isinstance(scheduler, LRScheduler)
        return self.optimizers(use_pl_optimizer=False), scheduler

    def minibatches(self, block: Batch) -> Iterator[Batch]:
        """Yield this process's part of each minibatch of the block."""
        size = self.datamodule.batch_size
        local_size = size // self.trainer.world_size
        for step in range(block.steps):
            rows = slice(step * local_size, (step + 1) * local_size)
            total = min(size, block.total - step * size)
            yield Batch(block.images[rows], block.labels[rows], 1, total)

    def check_data(self, data: Split) -> None:
        """Raise ValueError if the data is too small for `complete` or `evaluate`."""

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
        """Pictures to log after each epoch: figures, or images (N, C, H, W) in [0, 1]."""
        return {}


def sentence(clause: str) -> str:
    """Add a capital and a full stop."""
    return f"{clause[0].upper()}{clause[1:]}."
