"""Minibatches for Lightning, gathered by index from tensors in memory.

N is the number of images, B the number of images in a minibatch.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from digitlab.data.images import Images, Split, scale
from digitlab.runtime.seeds import Stream, generator


class Block(NamedTuple):
    """Consecutive minibatches: the item of the loader for a model that asks for blocks.

    Minibatch i is rows i*b to (i+1)*b, where b is the batch size (under DDP, the share of one
    process). The last minibatch may be short.
    """

    images: Tensor  # uint8 (n, C, H, W)
    labels: Tensor  # int64 (n,)
    steps: int  # minibatches
    total: int  # images over all processes


def to_batch(data: Images) -> tuple[Tensor, Tensor]:
    """Images as a model sees them, float32 (n, C, H, W) in [0, 1], and their labels."""
    return scale(data.images), data.labels


class Batches:
    """The shuffled minibatches of an epoch.

    An item is a minibatch as of `to_batch`, or with `block` a `Block` of that many minibatches. The
    order depends only on the seed and the epoch. Under DDP, process r of W takes rows r, r+W, ...
    of each global minibatch, so W processes together see what one process would.
    """

    def __init__(
        self, data: Images, batch_size: int, *, block: int = 0, seed: int, rank: int, world: int
    ) -> None:
        self.data, self.batch_size, self.block, self.seed = data, batch_size, block, seed
        self.rank, self.world = rank, world
        self.epoch = 0

    @property
    def sampler(self) -> "Batches":
        """The object on which Lightning calls set_epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration draws."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.data.labels) // (self.batch_size * max(1, self.block)))

    def __iter__(self) -> Iterator[Any]:
        rng = generator(self.seed, Stream.ORDER, self.epoch)
        order = torch.randperm(len(self.data.labels), generator=rng).to(self.data.labels.device)
        for rows in order.split(self.batch_size * max(1, self.block)):
            if self.block:
                yield self._take_block(rows)
            else:
                share = rows[self.rank :: self.world]
                # The mean over no image would be NaN; a row that stands in has the weight 0.
                yield to_batch(self.data.take(share if len(share) else rows[:1]))

    def _take_block(self, rows: Tensor) -> Block:
        steps, total = -(-len(rows) // self.batch_size), len(rows)
        if self.world > 1:
            minibatches = rows.split(self.batch_size)
            rows = torch.cat([batch[self.rank :: self.world] for batch in minibatches])
        return Block(*self.data.take(rows), steps, total)

    def weight(self, index: int) -> float:
        """The weight of this process's part of minibatch `index` in a mean over processes.

        With it, the mean over processes is the mean over the images, also if the last minibatch
        does not divide evenly.
        """
        total = min(self.batch_size, len(self.data.labels) - index * self.batch_size)
        return self.world * len(range(self.rank, total, self.world)) / total


class Chunks:
    """Images in order, for a pass without training.

    Args:
        data: The images.
        size: Images in an item; by default as many as 2,048 of MNIST's are large.
    """

    def __init__(self, data: Images, *, size: int | None = None) -> None:
        size = size or max(1, 2048 * 784 // data.images.shape[1:].numel())
        parts = zip(*(part.split(size) for part in data), strict=True)
        self.parts = [Images(*part) for part in parts]

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[Images]:
        return iter(self.parts)


class EvaluationBatches(Chunks):
    """The same as a model sees them, see `to_batch`."""

    def __iter__(self) -> Iterator[Any]:
        return map(to_batch, self.parts)


class MNISTData(LightningDataModule):
    """The training and validation images on the training device, and their loaders.

    Args:
        split: The images.
        batch_size: B, over all processes.
        block: Minibatches in an item of the training loader; 0 for single ones, see `Batches`.
        seed: The seed of the order.
    """

    def __init__(self, split: Split, *, batch_size: int, block: int = 0, seed: int) -> None:
        super().__init__()
        self.train, self.val, self.classes = split.train, split.val, split.classes
        self.batch_size, self.block, self.seed = batch_size, block, seed

    def setup(self, stage: str) -> None:
        """Move the images to the device once; the loaders gather their batches there."""
        assert self.trainer is not None
        device = self.trainer.strategy.root_device
        self.train = Images(*(part.to(device) for part in self.train))
        self.val = Images(*(part.to(device) for part in self.val))

    @property
    def steps(self) -> int:
        """The number of minibatches in an epoch, including a short last one."""
        return -(-len(self.train.labels) // self.batch_size)

    def train_dataloader(self) -> Batches:
        """Return the shuffled minibatches."""
        assert self.trainer is not None
        return Batches(
            self.train,
            self.batch_size,
            block=self.block,
            seed=self.seed,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
        )

    def val_dataloader(self) -> Chunks:
        """Return the held-out images in order.

        Under DDP each process evaluates all of them, so that every metric is exactly what one
        process computes.
        """
        return Chunks(self.val) if self.block else EvaluationBatches(self.val)
