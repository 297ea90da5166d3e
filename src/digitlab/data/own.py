"""Data sets of the user's own: folders of image files, or IDX files of any size."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from digitlab.data import idx
from digitlab.data.images import Images, Source, digest_images
from digitlab.data.mnist import warn_of_dark_images
from digitlab.registry import register_dataset
from digitlab.runs.files import resolve_path
from digitlab.runtime.seeds import Stream, generator

# Pillow's modes of grey images; transparency is ignored.
GREY = ("1", "L", "LA")
# The modes of more than eight bits, which uint8 cannot hold.
DEEP = ("I", "F", "I;16", "I;16L", "I;16B")
TEST_PARTS = ("test", "t10k")


# -- a folder for each class -----------------------------------------------------------------------


@register_dataset("image_folder")
def load_image_folder(root: str) -> Source:
    """Read root/train/CLASS/* and root/test/CLASS/*; the folders are the classes, sorted.

    Raises:
        ValueError: A folder is missing or empty, or an image does not fit the others.
    """
    return _load_image_folder(resolve_path(root))


# Cached for the jobs of a sweep.
@lru_cache(maxsize=2)
def _load_image_folder(root: Path) -> Source:
    from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

    remedy = f"put the images into {root}/train/CLASS and {root}/test/CLASS"
    folders = [root / "train", root / "test"]
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"data.root={root}: has no folder {folder.name}; {remedy}")
    try:
        (classes, index), (tested, _) = map(find_classes, folders)
        if unknown := sorted({*tested} - {*classes}):
            raise ValueError(
                f"{root}/test: has the class {unknown[0]}, which {root}/train lacks; add or move it"
            )
        files = [
            make_dataset(folder, index, extensions=IMG_EXTENSIONS, allow_empty=True)
            for folder in folders
        ]
    except FileNotFoundError as error:
        raise ValueError(f"data.root={root}: {str(error).rstrip('.')}; {remedy}") from error
    for folder, part in zip(folders, files, strict=True):
        if not part:
            endings = ", ".join(IMG_EXTENSIONS)
            raise ValueError(f"{folder}: holds no image ({endings}); {remedy}")
    first = _read_image(Path(files[0][0][0]))
    train, test = (_read_images(part, first) for part in files)
    return make_source(train, test, tuple(classes))


def _read_images(files: list[tuple[str, int]], first: np.ndarray) -> Images:
    """Read image files with their labels, all in the shape and the colours of the first one."""
    images = np.empty((len(files), *first.shape), np.uint8)  # (N, H, W) or (N, H, W, 3)
    for i, (name, _) in enumerate(files):
        image = _read_image(Path(name))
        if image.ndim < first.ndim:
            image = np.repeat(image[..., None], 3, axis=2)
        if image.ndim > first.ndim:
            raise ValueError(
                f"{name}: is in colour, but the first image is grey; convert all to one of them"
            )
        if image.shape != first.shape:
            (height, width), (rows, columns) = image.shape[:2], first.shape[:2]
            raise ValueError(
                f"{name}: has {height} x {width} pixels, but the first image {rows} x {columns};"
                " scale all to one size"
            )
        images[i] = image
    return Images(to_channels(images), torch.tensor([label for _, label in files]))


def _read_image(path: Path) -> np.ndarray:
    """Read an image file: grey (H, W) or in colour (H, W, 3)."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode in DEEP:
                raise ValueError(f"it has more than 8 bits a pixel, mode {image.mode}")
            return np.asarray(image.convert("L" if image.mode in GREY else "RGB"))
    # Damaged files raise exceptions of many unrelated classes.
    except Exception as error:
        raise ValueError(f"{path}: cannot be read ({error}); save it again, as PNG") from error


# -- IDX files -------------------------------------------------------------------------------------


@register_dataset("idx")
def load_idx(root: str) -> Source:
    """Read IDX files of bytes: images (N, H, W) in grey or (N, H, W, 3) in colour, labels (N,).

    Raises:
        ValueError: A file is missing or damaged, or the files do not fit each other.
    """
    return _load_idx(resolve_path(root))


@lru_cache(maxsize=2)
def _load_idx(root: Path) -> Source:
    train, test = (_read_idx_part(root, parts) for parts in (("train",), TEST_PARTS))
    first = int(train.labels.min())
    if first:
        raise ValueError(f"data.root={root}: the labels begin at {first}; subtract it from them")
    n_classes = 1 + max(int(part.labels.max()) for part in (train, test))
    warnings = warn_of_dark_images(root, train.images)
    return make_source(train, test, tuple(map(str, range(n_classes))), warnings)


def _read_idx_part(root: Path, parts: tuple[str, ...]) -> Images:
    images = idx.read_array(_find_idx(root, parts, ("images-idx3", "images-idx4")), (3, 4))
    path = _find_idx(root, parts, ("labels-idx1",))
    labels = idx.read_array(path, (1,))
    if len(images) != len(labels) or not images.size:
        raise ValueError(
            f"{path}: holds {len(labels)} labels for images of {images.shape};"
            " write both files again"
        )
    if images.ndim == 4 and images.shape[3] not in (1, 3):
        raise ValueError(
            f"{root}: images of {images.shape} must be (N, H, W), or (N, H, W, 3) in colour"
        )
    return Images(to_channels(images), torch.from_numpy(labels).long())


def _find_idx(root: Path, parts: tuple[str, ...], kinds: tuple[str, ...]) -> Path:
    """Find the file of a part, raw or .gz."""
    names = [f"{part}-{kind}-ubyte" for part in parts for kind in kinds]
    for name in names:
        for path in (root / name, root / f"{name}.gz"):
            if path.is_file():
                return path
    what = "is not a folder" if not root.is_dir() else f"has no {' or '.join(names)}"
    raise ValueError(
        f"data.root={root}: {what}; put train-images-idx3-ubyte (idx4 for colour),"
        " train-labels-idx1-ubyte, and the same with test- there, raw or .gz"
    )


def make_source(
    train: Images, test: Images, classes: tuple[str, ...], warnings: tuple[str, ...] = ()
) -> Source:
    """Make the data set, in a random order that is always the same.

    Files are often sorted by class, and figures show the first images.
    """
    digest = digest_images(train, test, classes)
    rng = generator(0, Stream.SPLIT)
    train, test = (
        part.take(torch.randperm(len(part.labels), generator=rng)) for part in (train, test)
    )
    return Source("files", digest, train, test, warnings, classes)


def to_channels(images: np.ndarray) -> torch.Tensor:
    """Turn (N, H, W) or (N, H, W, C) into a tensor (N, C, H, W)."""
    tensor = torch.from_numpy(images)
    if tensor.ndim == 3:
        return tensor[:, None]
    return tensor.permute(0, 3, 1, 2).contiguous()
