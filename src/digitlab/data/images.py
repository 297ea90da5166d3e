"""MNIST in memory: how it is split, how batches leave it.

The images stay one uint8 tensor and are scaled to [0, 1] on use; a batch is gathered by index.
N images, B images a batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from digitlab.runtime.seeds import Stream, generator

IMAGE_SHAPE = (28, 28)
PIXELS = IMAGE_SHAPE[0] * IMAGE_SHAPE[1]


class Images(NamedTuple):
    """Images and what they show: uint8 (N, 28, 28) in 0..255, int64 (N,) in 0..9."""

    images: Tensor
    labels: Tensor

    def take(self, index: Tensor) -> "Images":
        """The images at these positions, or where a mask is true."""
        if index.dtype == torch.bool:
            index = index.nonzero().flatten()
        # index_select copies an image at a time where indexing by [] copies a pixel at a time.
        return Images(self.images.index_select(0, index), self.labels.index_select(0, index))


@dataclass(frozen=True)
class Source:
    """A data set as it was found: both parts, where they came from, and what identifies their bytes."""

    name: str
    digest: str
    train: Images
    test: Images
    warnings: tuple[str, ...] = ()


NAMES = {"train": "training", "val": "held-out", "test": "test"}


class Split(NamedTuple):
    """What a run trains on, selects on and is judged by. `val` may be empty."""

    train: Images
    val: Images
    test: Images


def scale(images: Tensor) -> Tensor:
    """Pixels 0..255 as float32 in [0, 1]."""
    return images.float().div_(255)


def hold_out(data: Images, size: int, rng: torch.Generator) -> tuple[Images, Images]:
    """Draw `size` images, of each class its share (largest remainder), and return (the rest, those).

    Both keep the order of `data`.
    """
    counts = torch.bincount(data.labels, minlength=10)
    share = counts.double() * size / max(1, len(data.labels))
    quota = share.floor().long()
    quota[(share - quota).argsort(descending=True, stable=True)[: size - int(quota.sum())]] += 1
    taken = torch.zeros(len(data.labels), dtype=torch.bool)
    for digit in range(len(counts)):
        members = (data.labels == digit).nonzero().flatten()
        taken[members[torch.randperm(len(members), generator=rng)[: quota[digit]]]] = True
    return data.take(~taken), data.take(taken)


def split(source: Source, train_size: int | None, val_size: int, test_size: int | None, seed: int) -> Split:
    """Hold out the validation images, and slice the other training images and the test images to size, per class.

    Of one seed the validation images are the same with any train_size, of which they are a part, and the test images
    with any sizes of the others.
    Raises ValueError where a size is larger than what is there.
    """
    train, test = source.train, source.test
    for key, part, size in (("train_size", train, train_size), ("test_size", test, test_size)):
        if size is not None and size > len(part.labels):
            raise ValueError(f"data.{key}={size}: the {source.name} source has only {len(part.labels)}; null takes all")
    if val_size >= (size := len(train.labels) if train_size is None else train_size):
        raise ValueError(f"data.val_size={val_size}: is held out of the {size} training images and must be smaller")
    train, val = hold_out(train, val_size, generator(seed, Stream.SPLIT))
    if train_size is not None:
        _, train = hold_out(train, train_size - val_size, generator(seed, Stream.SPLIT, 1))
    if test_size is not None:
        _, test = hold_out(test, test_size, generator(seed, Stream.SPLIT, 2))
    return Split(train, val, test)


def data_warnings(parts: Split) -> list[str]:
    """A sentence for each thing about the parts that makes their figures say little."""
    everything = torch.cat([part.labels for part in parts]).unique().tolist()
    if len(everything) == 1:
        return [f"All images show a {everything[0]}: agreement with the digits says nothing."]
    found = []
    for name, part in parts._asdict().items():
        absent = sorted({*everything} - {*part.labels.unique().tolist()})
        if len(part.labels) and absent:
            which = ", ".join(map(str, absent))
            found.append(f"The {NAMES[name]} images show no {which}, which the rest of the data does.")
    if len(parts.test.labels) == 1:
        found.append("There is one test image: test/... say nothing of others.")
    return found


class Batch(NamedTuple):
    """Consecutive minibatches in one piece: uint8 (n, 28, 28), int64 (n,), how many steps they are, and how many
    images they hold over all processes.

    Minibatch i is rows i*b to (i+1)*b, with b the batch size (a rank's share of it under DDP); the last
    one may be short.
    """

    images: Tensor
    labels: Tensor
    steps: int
    total: int


class Batches:
    """An epoch's minibatches, `block` of them an item, gathered by index from tensors in memory.

    The order depends on the seed and the epoch alone. Under DDP the rank r of W takes rows r, r+W, ... of
    each global minibatch, so that W processes see together what one would.
    """

    def __init__(self, data: Images, batch_size: int, *, block: int, seed: int, rank: int, world: int) -> None:
        self.data, self.batch_size, self.block, self.seed = data, batch_size, block, seed
        self.rank, self.world = rank, world
        self.epoch = 0

    @property
    def sampler(self) -> "Batches":
        """Where Lightning looks for set_epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is drawn."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.data.labels) // (self.batch_size * self.block))

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(len(self.data.labels), generator=generator(self.seed, Stream.ORDER, self.epoch))
        order = order.to(self.data.labels.device)
        for rows in order.split(self.batch_size * self.block):
            steps, total = -(-len(rows) // self.batch_size), len(rows)
            if self.world > 1:
                rows = torch.cat([batch[self.rank :: self.world] for batch in rows.split(self.batch_size)])
            yield Batch(*self.data.take(rows), steps, total)


class Chunks:
    """Images in order, some thousand an item, for a pass without training.

    Under DDP the processes share each item, so that all have as many; a share may be empty.
    """

    def __init__(self, data: Images, *, rank: int = 0, world: int = 1, size: int = 2048) -> None:
        self.rank, self.world = rank, world
        self.parts = list(zip(*(part.split(size * world) for part in data), strict=True))

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[Batch]:
        for images, labels in self.parts:
            yield Batch(images[self.rank :: self.world], labels[self.rank :: self.world], 1, len(labels))


class MNISTData(LightningDataModule):
    """The training and validation images on the training device, and their batches."""

    def __init__(self, split: Split, *, batch_size: int, block: int, seed: int) -> None:
        super().__init__()
        self.train, self.val = split.train, split.val
        self.batch_size, self.block, self.seed = batch_size, block, seed

    def setup(self, stage: str) -> None:
        """Move the images to the device once; batches are then gathered there."""
        assert self.trainer is not None
        device = self.trainer.strategy.root_device
        self.train, self.val = (Images(*(part.to(device) for part in data)) for data in (self.train, self.val))

    @property
    def steps(self) -> int:
        """Minibatches an epoch, the last one perhaps short."""
        return -(-len(self.train.labels) // self.batch_size)

    def train_dataloader(self) -> Batches:
        """Shuffled minibatches, `block` an item."""
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
        """The held-out images in order."""
        assert self.trainer is not None
        return Chunks(self.val, rank=self.trainer.global_rank, world=self.trainer.world_size)
