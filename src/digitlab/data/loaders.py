"""Minibatches for Lightning, gathered by index from tensors in memory.

N is the number of images, B the number of images in a minibatch.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from digitlab.data.images import Images, Split
from digitlab.runtime.seeds import Stream, generator


class Batch(NamedTuple):
    """A block of consecutive minibatches: the item that a loader yields.

    Minibatch i is rows i*b to (i+1)*b, where b is the batch size (under DDP, the share of one
    process). The last minibatch may be short.
    """

    images: Tensor  # uint8 (n, C, H, W)
    labels: Tensor  # int64 (n,)
    steps: int  # minibatches
    total: int  # images over all processes


class Batches:
    """The shuffled minibatches of an epoch, `block` of them in an item.

    The order depends only on the seed and the epoch. Under DDP, process r of W takes rows r, r+W,
    ... of each global minibatch, so W processes together see what one process would.
    """

    def __init__(
        self, data: Images, batch_size: int, *, block: int, seed: int, rank: int, world: int
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
        return -(-len(self.data.labels) // (self.batch_size * self.block))

    def __iter__(self) -> Iterator[Batch]:
        rng = generator(self.seed, Stream.ORDER, self.epoch)
        order = torch.randperm(len(self.data.labels), generator=rng).to(self.data.labels.device)
        for rows in order.split(self.batch_size * self.block):
            steps, total = -(-len(rows) // self.batch_size), len(rows)
            if self.world > 1:
                minibatches = rows.split(self.batch_size)
                rows = torch.cat([batch[self.rank :: self.world] for batch in minibatches])
            yield Batch(*self.data.take(rows), steps, total)


class Chunks:
    """Images in order, for a pass without training.

    Under DDP the processes share each item, so all yield the same number; a share may be empty.

    Args:
        data: The images.
        rank: The number of this process.
        world: The number of processes.
        size: Images in an item for each process; by default as many as 2,048 of MNIST's are large.
    """

    def __init__(
        self, data: Images, *, rank: int = 0, world: int = 1, size: int | None = None
    ) -> None:
        self.rank, self.world = rank, world
        size = size or max(1, 2048 * 784 // data.images.shape[1:].numel())
        self.parts = list(zip(*(part.split(size * world) for part in data), strict=True))

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[Batch]:
        for images, labels in self.parts:
            rows = slice(self.rank, None, self.world)
            yield Batch(images[rows], labels[rows], 1, len(labels))


class MNISTData(LightningDataModule):
    """The training and validation images on the training device, and their loaders."""

    def __init__(self, split: Split, *, batch_size: int, block: int, seed: int) -> None:
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
        """Return the shuffled minibatches, `block` in an item."""
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
        """Return the held-out images in order."""
        assert self.trainer is not None
        return Chunks(self.val, rank=self.trainer.global_rank, world=self.trainer.world_size)
