"""Fashion-MNIST, KMNIST and EMNIST, where torchvision keeps and downloads them.

Their IDX files lie in FashionMNIST/raw, KMNIST/raw and EMNIST/raw below data.root.
"""

import logging
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

from digitlab.data import idx
from digitlab.data.images import Images, Source, digest_images
from digitlab.data.mnist import download, warn_of_dark_images
from digitlab.registry import register_dataset
from digitlab.runs.files import resolve_path

log = logging.getLogger(__name__)

# Training and test images of each split, as published.
EMNIST_SIZES = {
    "balanced": (112_800, 18_800),
    "byclass": (697_932, 116_323),
    "bymerge": (697_932, 116_323),
    "digits": (240_000, 40_000),
    "letters": (124_800, 20_800),
    "mnist": (60_000, 10_000),
}


class Published(NamedTuple):
    """A data set as published.

    `dataset` is its class in torchvision.datasets, `parts` is how its files name the training and
    the test images, `wanted` are the files of a download.
    """

    dataset: str
    parts: tuple[str, str]
    sizes: tuple[int, int]
    wanted: tuple[str, ...]


def file_names(part: str) -> tuple[str, str]:
    """The names of the images and of the labels of a part, without .gz."""
    return f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"


@register_dataset("fashion_mnist")
def load_fashion_mnist(root: str, source: str, verify: bool) -> Source:
    """Read or download Fashion-MNIST (Xiao et al., 2017): ten kinds of clothes."""
    return _load_like_mnist("FashionMNIST", root, source, verify)


@register_dataset("kmnist")
def load_kmnist(root: str, source: str, verify: bool) -> Source:
    """Read or download Kuzushiji-MNIST (Clanuwat et al., 2018): ten hiragana."""
    return _load_like_mnist("KMNIST", root, source, verify)


def _load_like_mnist(dataset: str, root: str, source: str, verify: bool) -> Source:
    from torchvision import datasets

    names = (*file_names("train"), *file_names("t10k"))
    published = Published(dataset, ("train", "t10k"), (60_000, 10_000), names)
    classes = tuple(getattr(datasets, dataset).classes)
    return _load(published, resolve_path(root), source, verify, classes)


@register_dataset("emnist")
def load_emnist(root: str, source: str, verify: bool, split: str) -> Source:
    """Read or download a split of EMNIST (Cohen et al., 2017), with upright images."""
    from torchvision.datasets import EMNIST

    wanted: list[str] = []
    for each in EMNIST_SIZES:
        for part in ("train", "test"):
            wanted += file_names(f"emnist-{each}-{part}")
    parts = f"emnist-{split}-train", f"emnist-{split}-test"
    published = Published("EMNIST", parts, EMNIST_SIZES[split], tuple(wanted))
    classes = tuple(EMNIST.classes_split_dict[split])
    return _load(published, resolve_path(root), source, verify, classes)


# Cached for the jobs of a sweep.
@lru_cache(maxsize=2)
def _load(
    published: Published, root: Path, source: str, verify: bool, classes: tuple[str, ...]
) -> Source:
    folder = root / published.dataset / "raw"
    names = [name for part in published.parts for name in file_names(part)]
    paths = _find(folder, names)
    if paths is None:
        reason = f"data.root={root}: holds no {published.dataset}"
        remedy = f"put {', '.join(names)} (raw or .gz) into {folder}"
        if source == "files":
            raise ValueError(f"{reason}, and data.source=files downloads nothing; {remedy}")
        log.info("%s; downloading it", reason)
        # torchvision's EMNIST has no default for this argument.
        options = {"split": "digits"} if published.dataset == "EMNIST" else {}
        try:
            download(published.dataset, list(published.wanted), folder, **options)
        except (OSError, RuntimeError) as error:
            cause = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise ValueError(
                f"{reason}, and nothing could be downloaded ({cause}); {remedy}"
            ) from error
        paths = _find(folder, names)
        assert paths is not None
    train, test = (_read_part(paths, part, published.dataset) for part in published.parts)
    if classes[0] == "N/A":
        # The labels of EMNIST's letters begin at 1.
        classes = classes[1:]
        train, test = (Images(part.images, part.labels - 1) for part in (train, test))
    if verify:
        _check_sizes(folder, (train, test), published)
    for part in (train, test):
        low, high = int(part.labels.min()), int(part.labels.max())
        if low < 0 or high >= len(classes):
            raise ValueError(
                f"{folder}: holds labels beyond the {len(classes)} classes of {published.dataset};"
                " copy its files again"
            )
    digest = digest_images(train, test, classes)
    warnings = warn_of_dark_images(folder, train.images)
    return Source("files", digest, train, test, warnings, classes)


def _find(folder: Path, names: list[str]) -> dict[str, Path] | None:
    """Find the files of a data set, raw or .gz; None without any."""
    paths: dict[str, Path] = {}
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                paths.setdefault(name, path)
    missing = [name for name in names if name not in paths]
    if paths and missing:
        raise ValueError(f"{folder}: lacks {', '.join(missing)} (raw or .gz); add what is missing")
    return paths or None


def _read_part(paths: dict[str, Path], part: str, dataset: str) -> Images:
    """Read the images and the labels of a part."""
    image_name, label_name = file_names(part)
    images = torch.from_numpy(idx.read_array(paths[image_name], (3,)))[:, None]
    labels = torch.from_numpy(idx.read_array(paths[label_name], (1,))).long()
    path = paths[image_name]
    if images.shape[1:] != (1, 28, 28):
        height, width = images.shape[2:]
        raise ValueError(
            f"{path}: holds images of {height} x {width} pixels, those of {dataset} have 28 x 28;"
            " data=idx reads any size"
        )
    if not len(labels) or len(images) != len(labels):
        raise ValueError(
            f"{path}: holds {len(images)} images for {len(labels)} labels; copy both files again"
        )
    if dataset == "EMNIST":
        # Its files hold the images transposed.
        images = images.mT.contiguous()
    return Images(images, labels)


def _check_sizes(folder: Path, parts: tuple[Images, Images], published: Published) -> None:
    """Raise ValueError if the numbers of images are not the published ones."""
    sizes = tuple(len(part.labels) for part in parts)
    if sizes != published.sizes:
        held, expected = (
            f"{a:,} training and {b:,} test images" for a, b in (sizes, published.sizes)
        )
        raise ValueError(
            f"{folder}: holds {held}, {published.dataset} has {expected};"
            " set data.verify=false for a part of it, else copy its files again"
        )
