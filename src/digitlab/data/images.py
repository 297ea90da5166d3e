"""Images and labels as tensors: the data set, its split, and what the split warns of.

All images stay one uint8 tensor and are scaled to [0, 1] on use. N is the number of images.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from digitlab.data.idx import IMAGE_SHAPE
from digitlab.runtime.seeds import Stream, generator

PIXELS = IMAGE_SHAPE[0] * IMAGE_SHAPE[1]
IMAGE_RULE = "must be uint8 from 0 to 255, or floats from 0 to 1; convert or divide them"


class Images(NamedTuple):
    """Images and their labels: uint8 (N, 28, 28) in 0..255, int64 (N,) in 0..9."""

    images: Tensor
    labels: Tensor

    def take(self, index: Tensor) -> "Images":
        """Select images by position, or by a boolean mask."""
        if index.dtype == torch.bool:
            index = index.nonzero().flatten()
        # index_select copies an image at a time; indexing by [] copies a pixel at a time.
        return Images(self.images.index_select(0, index), self.labels.index_select(0, index))


@dataclass(frozen=True)
class Source:
    """A data set as loaded: its origin, the digest of its bytes, both parts, and warnings."""

    name: str
    digest: str
    train: Images
    test: Images
    warnings: tuple[str, ...] = ()


class Split(NamedTuple):
    """The images to train on, to select the best epoch with (may be empty), and to test on.

    `source` is the whole data set that they were drawn from.
    """

    train: Images
    val: Images
    test: Images
    source: Source | None = None


def scale(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Scale uint8 in 0..255 to floats in [0, 1]; floats are in [0, 1] already."""
    if images.is_floating_point():
        return images.to(dtype)
    return images.to(dtype).div_(255)


def as_images(images: Any) -> Tensor:
    """Check images that a user gives to a model.

    Args:
        images: A NumPy array or tensor (N, 28, 28) or (N, 1, 28, 28); uint8, or floats in [0, 1].

    Returns:
        uint8 or float32 (N, 28, 28), for `scale`, on the device where they are.

    Raises:
        ValueError: They have another shape, type or range.
    """
    pixels = images if isinstance(images, Tensor) else _to_tensor(images)
    is_float = pixels.is_floating_point()
    if pixels.dtype != torch.uint8 and not is_float:
        name = str(pixels.dtype).removeprefix("torch.")
        raise ValueError(f"images of type {name}: {IMAGE_RULE}")
    if pixels.shape[1:] not in (IMAGE_SHAPE, (1, *IMAGE_SHAPE)):
        height, width = IMAGE_SHAPE
        raise ValueError(
            f"images of shape {tuple(pixels.shape)}: must be (N, {height}, {width}) or"
            f" (N, 1, {height}, {width}); one image is images[None]"
        )
    if is_float:
        pixels = pixels.float()
        # A NaN fails both comparisons.
        if pixels.numel() and not (pixels.min() >= 0 and pixels.max() <= 1):
            low, high = pixels.min().item(), pixels.max().item()
            raise ValueError(f"images with values from {low:g} to {high:g}: {IMAGE_RULE}")
    return pixels.reshape(-1, *IMAGE_SHAPE)


def _to_tensor(images: Any) -> Tensor:
    """Make a tensor of an array; of floats as float32."""
    array = np.asarray(images)
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
    elif array.dtype != np.uint8:
        raise ValueError(f"images of type {array.dtype}: {IMAGE_RULE}")
    # torch shares memory only if it is writable and without negative strides.
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def hold_out(data: Images, size: int, rng: torch.Generator) -> tuple[Images, Images]:
    """Draw `size` images, stratified by class (largest remainder).

    Returns:
        The remaining images and the drawn ones, both in the order of `data`.
    """
    counts = torch.bincount(data.labels, minlength=10)
    share = counts.double() * size / max(1, len(data.labels))
    quota = share.floor().long()
    missing = size - int(quota.sum())
    quota[(share - quota).argsort(descending=True, stable=True)[:missing]] += 1
    taken = torch.zeros(len(data.labels), dtype=torch.bool)
    for digit in range(len(counts)):
        members = (data.labels == digit).nonzero().flatten()
        taken[members[torch.randperm(len(members), generator=rng)[: quota[digit]]]] = True
    return data.take(~taken), data.take(taken)


def split(
    source: Source, train_size: int | None, val_size: int, test_size: int | None, seed: int
) -> Split:
    """Hold out validation images, then reduce the training and test images to their sizes.

    Every draw is stratified by class. For one seed, the validation images are the same for every
    `train_size`, and the test images are the same for all sizes of the other parts.

    Args:
        source: The data set to split.
        train_size: Training images including the held-out ones; None takes all.
        val_size: Images to hold out of the training images.
        test_size: Test images; None takes all.
        seed: Seed of the draws.

    Raises:
        ValueError: If a size exceeds the available images.
    """
    train, test = source.train, source.test
    for key, part, size in (("train_size", train, train_size), ("test_size", test, test_size)):
        if size is not None and size > len(part.labels):
            raise ValueError(
                f"data.{key}={size}: the {source.name} source has only {len(part.labels)};"
                " null takes all"
            )
    available = len(train.labels) if train_size is None else train_size
    if val_size >= available:
        raise ValueError(
            f"data.val_size={val_size}: is held out of the {available} training images"
            " and must be smaller"
        )
    train, val = hold_out(train, val_size, generator(seed, Stream.SPLIT))
    if train_size is not None:
        _, train = hold_out(train, train_size - val_size, generator(seed, Stream.SPLIT, 1))
    if test_size is not None:
        _, test = hold_out(test, test_size, generator(seed, Stream.SPLIT, 2))
    return Split(train, val, test, source)


def data_warnings(parts: Split) -> list[str]:
    """List the properties of a split that make its metrics meaningless, one sentence each."""
    images = {"training": parts.train, "held-out": parts.val, "test": parts.test}
    classes = torch.cat([part.labels for part in images.values()]).unique().tolist()
    if len(classes) == 1:
        return [f"All images show a {classes[0]}: metrics that use the labels mean nothing."]
    warnings = []
    for name, part in images.items():
        absent = sorted({*classes} - {*part.labels.unique().tolist()})
        if len(part.labels) and absent:
            digits = ", ".join(map(str, absent))
            warnings.append(f"The {name} images lack {digits}, which other images show.")
    if len(parts.test.labels) == 1:
        warnings.append("There is only one test image: test/... describes no other image.")
    return warnings
