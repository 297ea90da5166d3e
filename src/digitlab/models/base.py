"""What training asks of a model, and how either model's rate of learning is made."""

import difflib
import inspect
import logging
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, OneCycleLR

from digitlab.data.images import Source, Split
from digitlab.data.loaders import Batch, MNISTData

for library in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(library).setLevel(logging.WARNING)  # its hints come with every job and every checkpoint
# torch 2.13 renamed what Lightning 2.6 asks of it; nothing a user could act on.
warnings.filterwarnings("ignore", message=r".*LeafSpec.*", module=r"lightning\.pytorch")


UNUSABLE = {"lbfgs", "muon", "sparseadam"}  # they want a closure, matrices alone, sparse gradients


class Model(LightningModule):
    """A LightningModule that can be judged and shown; its constructor takes plain values alone.

    `optimizer` and `scheduler` are the values of their config groups. The optimizer steps inside `training_step`,
    over a block of minibatches, so that Lightning's work is paid once a block.
    """

    block = 8  # minibatches an item of the training loader
    threads: int | None = None  # CPU threads to train with; None leaves torch's choice
    bf16 = False  # whether trainer.precision=auto may choose bfloat16
    judged_by: str | None = None  # the classifier that scored what the model generates; `evaluate` sets it

    def __init__(self, optimizer: dict[str, Any], scheduler: dict[str, Any], seed: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.optimizer, self.scheduler, self.seed = optimizer, scheduler, seed
        self.total: Tensor | float = 0.0  # of the losses of the epoch's images so far
        self.seen = 0  # such images

    def on_train_epoch_start(self) -> None:
        """Begin the epoch's mean loss anew."""
        self.total, self.seen = 0.0, 0

    def accumulate_loss(self, loss: Tensor, images: int) -> None:
        """Take the mean loss of so many images into the epoch's, which is logged with the last ones.

        Lightning's log would take as long for each minibatch as a step of k-means.
        """
        self.total, self.seen = self.total + loss.detach() * images, self.seen + images
        if self.trainer.is_last_batch:
            distributed = self.trainer.world_size > 1
            mean = self.total / self.seen
            self.log("train/loss", mean, on_step=False, on_epoch=True, batch_size=self.seen, sync_dist=distributed)

    @property
    def batches(self) -> MNISTData:
        """The data that is trained on."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, MNISTData)
        return data

    def configure_optimizers(self) -> Any:
        """The optimizer, and its schedule over all minibatches of the run."""
        optimizer = make_optimizer(self.parameters(), **self.optimizer)
        total_steps = self.batches.steps * (self.trainer.max_epochs or 0)
        scheduler = make_scheduler(optimizer, total_steps=total_steps, **self.scheduler)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}] if scheduler else []

    def loss(self, batch: Batch) -> Tensor:
        """The loss of one minibatch, for a model that autograd trains."""
        raise NotImplementedError

    def training_step(self, block: Batch, index: int) -> Tensor:
        """Take one step down the loss for each minibatch of the block; returns their mean loss."""
        optimizer, scheduler = self.descent()
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

    def descent(self) -> tuple[Any, LRScheduler | None]:
        """The optimizer and its schedule, bare: Lightning's wrapper takes as long as a step of k-means."""
        scheduler = self.lr_schedulers()
        assert scheduler is None or isinstance(scheduler, LRScheduler)
        return self.optimizers(use_pl_optimizer=False), scheduler

    def minibatches(self, block: Batch) -> Iterator[Batch]:
        """The block's minibatches, of each the images that this process has."""
        size = self.batches.batch_size
        mine = size // self.trainer.world_size
        for step in range(block.steps):
            rows = slice(step * mine, (step + 1) * mine)
            yield Batch(block.images[rows], block.labels[rows], 1, min(size, block.total - step * size))

    def require(self, data: Split) -> None:
        """Raise ValueError where the data is too little for what comes after training; by default it never is."""

    def evaluate(self, source: Source, data: Split) -> dict[str, float]:
        """The metrics of the finished model; no model sees the test images but here."""
        raise NotImplementedError

    def warnings(self, metrics: dict[str, float], baselines: dict[str, float]) -> list[str]:
        """What went wrong, a sentence each, with its remedy."""
        raise NotImplementedError

    def smaller_steps(self) -> str:
        """How to take smaller steps at once, without capital and full stop."""
        if "lr" in self.optimizer:
            return "lower optimizer.lr"
        return "choose optimizer=sgd, whose lr can be lowered"

    def steadier_steps(self) -> str:
        """As `smaller_steps`, or by a decay where there is none yet."""
        if self.scheduler["name"] == "constant":
            return f"{self.smaller_steps()}, or let it decay (scheduler=linear)"
        return self.smaller_steps()

    def complete(self, data: Split) -> None:
        """What training leaves to be done once, on the best checkpoint; by default nothing."""

    def pictures(self) -> dict[str, Tensor | Figure]:
        """What to watch from epoch to epoch, by name: figures, or images (N, 1, 28, 28) in [0, 1]."""
        return {}


def sentence(words: str) -> str:
    """With a capital and a full stop."""
    return f"{words[0].upper()}{words[1:]}."


def make_optimizer(parameters: Iterable[nn.Parameter], name: str, **options: Any) -> Optimizer:
    """The optimizer of conf/optimizer/<name>.yaml, with that file's values as `options`.

    Raises ValueError where torch.optim has no such name or it no such option, and what its constructor raises.
    """
    match name:
        case "adamw":
            return AdamW(parameters, betas=(0.9, options.pop("beta2")), fused=True, **options)
        case "inverse_count" | "sqrt_share":  # k-means scales the gradient to them, centre by centre
            return SGD(parameters, lr=1.0)
    types = [kind for kind in vars(torch.optim).values() if isinstance(kind, type) and issubclass(kind, Optimizer)]
    kinds = {kind.__name__.lower(): kind for kind in types if kind is not Optimizer}
    kinds = {kind: kinds[kind] for kind in sorted({*kinds} - UNUSABLE)}
    if name not in kinds:
        close = "".join(f"; did you mean {kind}?" for kind in difflib.get_close_matches(name.lower(), kinds, n=1))
        raise ValueError(f"must be one of torch.optim's {', '.join(kinds)}{close}")
    _, *arguments = inspect.signature(kinds[name]).parameters
    if unknown := [key for key in options if key not in arguments]:
        raise ValueError(f"{kinds[name].__name__} has no {', '.join(map(str, unknown))}; it has {', '.join(arguments)}")
    return kinds[name](parameters, **options)


def try_optimizer(options: dict[str, Any]) -> None:
    """Raise ValueError where the values of conf/optimizer make no optimizer of weights and biases that can step."""
    words = [f"optimizer.{key}={value}" for key, value in options.items() if key != "name" and isinstance(value, str)]
    if words:
        raise ValueError("\n".join(f"{word}: must be a number" for word in words))
    weights = [nn.Parameter(torch.zeros(*shape)) for shape in ((2,), (2, 2), (2, 2, 3, 3))]
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    try:
        make_optimizer(weights, **options).step()
    except Exception as error:
        values = " ".join(f"{key}={value}" for key, value in options.items() if key != "name")
        told = f"{error} (with {values})" if values else str(error)
        raise ValueError(f"optimizer={options['name']}: {told}") from error


def make_scheduler(optimizer: Optimizer, name: str, total_steps: int, **options: Any) -> LRScheduler | None:
    """The schedule of conf/scheduler/<name>.yaml over `total_steps` minibatches; None for a constant rate."""
    match name:
        case "constant":
            return None
        case "linear":
            return LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=total_steps)
        case "cosine":
            return CosineAnnealingLR(optimizer, T_max=total_steps)
        case "one_cycle":
            peak = optimizer.param_groups[0]["lr"]
            if total_steps < 3:
                raise ValueError(
                    f"scheduler=one_cycle: rises and falls, for which it takes 3 steps or more, not {total_steps};"
                    " train longer, or choose scheduler=constant"
                )
            rise = max(options["pct_start"], 1.5 / total_steps)  # torch divides by zero where one step is all of it
            return OneCycleLR(optimizer, peak, total_steps=total_steps, cycle_momentum=False, pct_start=rise)
    raise AssertionError(name)
