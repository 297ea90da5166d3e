"""Minibatch k-means by stochastic gradient descent (Bottou and Bengio, 1995; Sculley, 2010).

With B images x of D pixels, K centres c, and k(x) the centre nearest to x, the loss is

    L = 1/(B D) * sum_x |x - c_k(x)|^2                                                           (1)

Its gradient needs only the number of points that each centre wins, m_k, and their sum, s_k:

    dL/dc_k = 2/(B D) * (m_k c_k - s_k)                                                          (2)

so under DDP the processes exchange only these. Two optimizers give each centre its own rate: that
of Bottou and Bengio (their eq. 6), with n_k the points that centre k has won so far, and that of
Schwartzman (2023),

    c_k -= 1/n_k (m_k c_k - s_k)           c_k -= sqrt(m_k/B) (c_k - s_k/m_k)                    (3)

Images and centres are moved by the same vector, to where the mean image is near 0. This changes no
distance, gradient or k(x), and keeps the digits of float32, see `distances`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.tensorboard import SummaryWriter

from digitlab import figures
from digitlab.data.images import (
    Images,
    Split,
    as_images,
    in_layout,
    kind_of_class,
    scale,
    to_array,
)
from digitlab.data.loaders import Block
from digitlab.models.base import sentence
from digitlab.models.distances import nearest, squared_distances
from digitlab.models.initialization import draw_centers
from digitlab.models.optimizers import make_bare_step
from digitlab.models.reassignment import reassign, smallest_cluster
from digitlab.models.reconstruction import ReconstructionModel
from digitlab.registry import register_model
from digitlab.runs.files import atomic_write, write_csv
from digitlab.runtime.seeds import Stream, generator

# Images in the sample that shows whether any cluster is small.
REASSIGN_SAMPLE = 10_000


class Wins(NamedTuple):
    """The points that each centre wins; the sum over parts of a minibatch is that of the whole."""

    counts: Tensor  # m_k, float (K,)
    sums: Tensor  # s_k, (K, D)
    squared: Tensor  # the sum of the squared distances to the nearest centre, ()


def assign(x: Tensor, centers: Tensor) -> Wins:
    """Assign each point of x (B, D) to the nearest of the centers (K, D)."""
    labels, distances = nearest(x, centers)
    one_hot = x.new_zeros(len(centers), len(x)).scatter_(0, labels[None], 1)  # (K, B)
    return Wins(one_hot.sum(1), one_hot @ x, x.square().sum() + distances.sum())


def gradient(wins: Wins, centers: Tensor) -> Tensor:
    """Compute the gradient (2) of the loss (1) with respect to the centers, (K, D)."""
    counts = wins.counts[:, None]
    return (counts * centers - wins.sums).div_(wins.counts.sum() * (centers.shape[1] / 2))


def rate_factors(name: str, wins: Wins, total_counts: Tensor) -> Tensor:
    """Compute the factors (K,) that turn the gradient (2) into a step (3).

    Args:
        name: The optimizer, inverse_count or sqrt_share.
        wins: The wins of this minibatch.
        total_counts: n_k, with this minibatch included, (K,).
    """
    size = wins.counts.sum()
    n = total_counts if name == "inverse_count" else (wins.counts * size).sqrt()
    return size * (wins.sums.shape[1] / 2) / n.clamp(min=1)


@register_model("kmeans")
class MiniBatchKMeans(ReconstructionModel):
    """K-means with the centres as the parameters of a gradient descent.

    It asks for blocks of minibatches and steps by hand, since Lightning's own work for one step
    takes longer than the step.

    Args:
        n_clusters: K.
        init: The values of conf/init; `name` is the choice.
        reassignment_ratio: See `reassignment.reassign`; 0 turns it off.
        **options: See `Model`.
    """

    block_steps = 64
    # A product of 64 x 784 x 10 finishes before a second thread has started.
    threads = 1

    def __init__(
        self,
        n_clusters: int,
        init: dict[str, Any],
        reassignment_ratio: float,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.automatic_optimization = False
        self.n_clusters, self.init, self.reassignment_ratio = n_clusters, init, reassignment_ratio
        self.centers = nn.Parameter(torch.zeros(n_clusters, self.pixels))
        # n_k, for the rate 1/n_k.
        self.register_buffer("won", torch.zeros(n_clusters))
        self.won: Tensor
        # About minus the mean training image. `setup` computes it; no checkpoint needs it.
        self.register_buffer("shift", torch.zeros(self.pixels), persistent=False)
        self.shift: Tensor
        # The sum of the losses of the epoch's images so far, and the number of these images.
        self.loss_sum: Tensor | float = 0.0
        self.n_images = 0
        # The confusion matrix of the training images, int (classes, K), set by `evaluate`.
        self.confusion: np.ndarray | None = None
        # The number of distinct training images, set by `evaluate` if there are idle centres.
        self.distinct: int | None = None

    @torch.no_grad()
    def setup(self, stage: str) -> None:
        """Draw the initial centres; a checkpoint to resume from replaces them afterwards."""
        if stage == "fit":
            rng = generator(self.seed, Stream.INIT)
            train = Images(*(part.cpu() for part in self.datamodule.train))
            # The mean of about a thousand images is accurate enough.
            sample = train.images[:: 1 + len(train.images) // 1000]
            self.shift.copy_(-scale(sample).mean(0).flatten())
            self.centers.copy_(draw_centers(self.init["name"], train, self.n_clusters, rng))

    def total_steps(self) -> int:
        """The number of minibatches of the whole run."""
        return self.datamodule.steps * (self.trainer.max_epochs or 0)

    def on_train_epoch_start(self) -> None:
        """Reset the epoch's mean loss; reassign centres if the configuration says so."""
        self.loss_sum, self.n_images = 0.0, 0
        if self.reassignment_ratio > 0:
            self._reassign()

    def shifted(self, images: Tensor) -> Tensor:
        """Convert uint8 (n, C, H, W) to points (n, D) in [0, 1], moved by `shift`, in one pass."""
        return torch.add(self.shift, images.flatten(1).float(), alpha=1 / 255)

    def training_step(self, block: Block, index: int) -> Tensor:
        """Take one step for each minibatch of the block; return their mean loss."""
        # Attributes of modules and parameters are slow to look up, and Lightning's wrapper of the
        # optimizer takes as long as a step. The first step of a block is the optimizer's own, which
        # its scheduler waits for.
        parameter, shift, name = self.centers, self.shift, self.optimizer["name"]
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        scheduler = self.lr_schedulers()
        assert scheduler is None or isinstance(scheduler, LRScheduler)
        step, next_step = optimizer.step, make_bare_step(optimizer, parameter)
        squared = self.won.new_zeros(())
        won = torch.zeros_like(self.won)
        with torch.no_grad():
            for images in self._minibatches(block):
                centers = parameter + shift  # (K, D)
                wins = self._reduce(assign(self.shifted(images), centers))
                parameter.grad = gradient(wins, centers)
                won += wins.counts
                if name != "sgd":
                    parameter.grad *= rate_factors(name, wins, self.won + won)[:, None]
                step()
                step = next_step
                if scheduler is not None:
                    scheduler.step()
                squared += wins.squared
            self.won += won
        loss = squared.clamp(min=0) / (won.sum() * self.pixels)
        self._count_steps(block.steps)
        self._accumulate_loss(loss, block.total)
        return loss

    def _minibatches(self, block: Block) -> Iterator[Tensor]:
        """Yield this process's images of each minibatch of the block."""
        size = self.datamodule.batch_size // self.trainer.world_size
        for step in range(block.steps):
            yield block.images[step * size : (step + 1) * size]

    def _count_steps(self, steps: int) -> None:
        """Add minibatches to the trainer's global_step, which its wrapper would count."""
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        for tracker in (progress.total, progress.current):
            tracker.ready += steps
            tracker.completed += steps

    def _accumulate_loss(self, loss: Tensor, images: int) -> None:
        """Add the mean loss of `images` images to the epoch's mean; log it after the last block.

        Lightning's own log would take as long for each minibatch as a step.
        """
        self.loss_sum = self.loss_sum + loss.detach() * images
        self.n_images += images
        if self.trainer.is_last_batch:
            loss, n = self.loss_sum / self.n_images, self.n_images
            self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=n)

    def _reduce(self, wins: Wins) -> Wins:
        """Under DDP, sum the wins of all processes in one message."""
        if self.trainer.world_size == 1:
            return wins
        packed = torch.cat([wins.counts, wins.sums.flatten(), wins.squared[None]])
        dist.all_reduce(packed)
        k = self.n_clusters
        return Wins(packed[:k], packed[k:-1].view(k, -1), packed[-1])

    @torch.no_grad()
    def _reassign(self) -> None:
        """Move centres with small clusters; all processes have all images and move the same."""
        images, centers = self.datamodule.train.images, self.centers + self.shift
        rng = generator(self.seed, Stream.REASSIGN, self.current_epoch)
        # Most often no cluster is small, and a sample of the images shows it sooner than all.
        rows = torch.randperm(len(images), generator=rng)[:REASSIGN_SAMPLE].to(images.device)
        labels, _ = nearest(self.shifted(images.index_select(0, rows)), centers)
        eligible = torch.ones(self.n_clusters, dtype=torch.bool, device=labels.device)
        if smallest_cluster(labels, eligible, self.reassignment_ratio) is None:
            return
        moves = reassign(self.shifted(images), centers, self.reassignment_ratio, rng)
        moved = moves >= 0
        self.centers[moved] = scale(images.index_select(0, moves[moved])).flatten(1)
        self.won[moved] = 0
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        momentum = optimizer.state[self.centers].get("momentum_buffer")
        if momentum is not None:
            momentum[moved] = 0

    def validation_step(self, chunk: Images, index: int) -> None:
        """Log the loss of held-out images."""
        squared = squared_distances(self.shifted(chunk.images), self.centers + self.shift)[1]
        n = len(chunk.labels)
        self.log("val/loss", squared.sum() / (n * self.pixels), batch_size=n)

    def predict(self, data: Images) -> tuple[Tensor, float]:
        """Compute the centre of each image, int64 (N,) on the CPU, and the mean loss (1)."""
        labels, total = self._find_centers(data.images)
        return labels, total / (len(data.labels) * self.pixels)

    def assign(self, images: Any) -> Tensor:
        """Compute the number of the nearest centre of each image of a user, int64 (N,).

        Args:
            images: See `as_images`.
        """
        return self._find_centers(as_images(images, self.image_shape))[0]

    def reconstruct(self, images: Any) -> Tensor:
        """Replace each image by its nearest centre; float on the CPU, in the layout of the images.

        Args:
            images: See `as_images`.
        """
        return in_layout(self.center_images()[self.assign(images)], images)

    @torch.no_grad()
    def _find_centers(self, images: Tensor) -> tuple[Tensor, float]:
        """Compute the nearest centres, int64 (N,), and the sum of the squared distances."""
        labels, total = [], 0.0
        # A loaded model has no `shift`; float64 has digits enough without it.
        centers = self.centers.double()
        # 256 images fit into a CPU's cache.
        for part in images.split(256):
            x = scale(part.to(self.device), torch.double).flatten(1)
            part_labels, squared = squared_distances(x, centers)
            labels.append(part_labels.cpu())
            # A loss beyond float32 is infinite, as in training.
            total += float(squared.float().sum(dtype=torch.double))
        return torch.cat(labels), total

    def evaluate(self, data: Split) -> dict[str, float]:
        """Compute the metrics of the finished model.

        A centre is active if it wins a training image.
        """
        labels, train_loss = self.predict(data.train)
        self.confusion = count_pairs(data.train.labels, labels, self.n_clusters, self.n_classes)
        metrics = {"train/loss": train_loss}
        if len(data.val.labels):
            metrics["val/loss"] = self.predict(data.val)[1]
        test_labels, metrics["test/loss"] = self.predict(data.test)
        scores = agreement(data.test.labels, test_labels, self.n_clusters, self.n_classes)
        metrics |= {f"test/{name}": value for name, value in scores.items()}
        active = len(labels.unique())
        if active < self.n_clusters:
            self.distinct = count_distinct(data.train.images)
        return metrics | {"active_centers": active}

    def warnings(self, metrics: dict[str, float], baselines: dict[str, float]) -> list[str]:
        """Warn of idle centres, with a remedy."""
        if exploded := super().warnings(metrics, baselines):
            return exploded
        k, active, messages = self.n_clusters, int(metrics["active_centers"]), []
        most = k if self.distinct is None else min(k, self.distinct)
        if most < k:
            messages.append(
                f"{k} centres for {most} distinct training images: {k - active} win none."
                f" Use fewer clusters (model.n_clusters={most})."
            )
        if active == 1 < most:
            collapse = f"Collapsed: one centre holds all the points, the other {k - 1} win none."
            messages.append(f"{collapse} {self._idle_remedy()}")
        elif active < most:
            idle = f"{k - active} of {k} centres win no training image."
            messages.append(f"{idle} {self._idle_remedy()}")
        return messages

    def _idle_remedy(self) -> str:
        """The settings against idle centres that the run does not have already."""
        choices = []
        match self.init["name"]:
            case "kmeans++":
                pass
            case "digit" | "sample":
                choices.append("start from images that differ more (init=kmeans++)")
            case _:
                # One image of each class makes as many centres.
                digit = "init=digit, " if self.n_clusters == self.n_classes else ""
                choices.append(f"start from data ({digit}init=kmeans++)")
        if self.reassignment_ratio == 0:
            choices.append("revive idle centres (model.reassignment_ratio=0.01)")
        if not choices:
            choices = [self.steadier_steps() + ",", "use fewer clusters (model.n_clusters)"]
        return sentence(" or ".join(choices))

    def write_files(self, data: Split, directory: Path, writer: SummaryWriter) -> None:
        """Write centers.npy, and confusion_matrix.csv of the training images."""
        assert self.confusion is not None, "evaluate must run first"
        with atomic_write(directory / "centers.npy") as part:
            np.save(part, to_array(self.center_images()))
        columns = [f"center {k}" for k in range(self.n_clusters)]
        rows = []
        for name, counts in zip(data.classes, self.confusion.tolist(), strict=True):
            rows.append([name, *counts])
        header = [kind_of_class(data.classes), *columns]
        write_csv(directory / "confusion_matrix.csv", header, rows)

    def figures(self, data: Split) -> dict[str, Figure]:
        """Draw the centres and the confusion matrix of the training images."""
        assert self.confusion is not None, "evaluate must run first"
        centers, heading = to_array(self.center_images()), f"Final centres, {self.heading}"
        kind = kind_of_class(data.classes)
        return {
            "centers": figures.centers(centers, self.confusion, heading, data.classes),
            "confusion_matrix": figures.confusion_matrix(
                self.confusion, f"Training images by {kind} and centre", data.classes
            ),
        }

    def pictures(self) -> dict[str, Tensor | Figure]:
        """The centres as images (K, C, H, W)."""
        return {"centers": self.center_images().clamp(0, 1)}

    def center_images(self) -> Tensor:
        """The centres as images, float (K, C, H, W) on the CPU."""
        return self.centers.detach().view(-1, *self.image_shape).cpu()


def count_distinct(images: Tensor) -> int:
    """Count the distinct images of (N, C, H, W), uint8."""
    return len({image.tobytes() for image in images.cpu().numpy()})


def count_pairs(
    classes: Tensor, labels: Tensor, n_clusters: int, n_classes: int = 10
) -> np.ndarray:
    """Compute the confusion matrix, int (classes, K): the images of class i at centre k."""
    pairs = torch.bincount(classes * n_clusters + labels, minlength=n_classes * n_clusters)
    return pairs.view(n_classes, n_clusters).numpy()


def agreement(
    classes: Tensor, labels: Tensor, n_clusters: int, n_classes: int = 10
) -> dict[str, float]:
    """Measure how well a clustering agrees with the classes.

    Args:
        classes: The class of each image, int64 (N,).
        labels: The centre of each image, int64 (N,).
        n_clusters: K.
        n_classes: The number of classes.

    Returns:
        Scores from 0 to 1 (ari from -0.5).
        accuracy: The share of images on the best one-to-one matching of centres and classes.
        diagonal (for as many centres as classes): The share of images of class i at centre i.
        purity: The share of images of the commonest class of their centre.
        nmi, ari: Normalized mutual information and adjusted Rand index, by scikit-learn.
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    confusion = count_pairs(classes, labels, n_clusters, n_classes)
    n = confusion.sum()
    matching = linear_sum_assignment(confusion, maximize=True)
    scores = {"accuracy": confusion[matching].sum() / n}
    if n_clusters == n_classes:
        scores["diagonal"] = confusion.trace() / n
    scores["purity"] = confusion.max(0).sum() / n
    scores["nmi"] = normalized_mutual_info_score(classes, labels)
    scores["ari"] = adjusted_rand_score(classes, labels)
    return {name: float(score) for name, score in scores.items()}
