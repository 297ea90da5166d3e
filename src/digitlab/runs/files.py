"""Atomic files, links and locks in the directory of a run."""

import csv
import io
import json
import math
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import lock_descriptor

# The umask can only be read by setting it.
UMASK = os.umask(0o022)
os.umask(UMASK)

# The size limit of a JSON file, enough for the plan of 300,000 jobs.
LARGEST_JSON = 2**26  # bytes


def resolve_path(name: str) -> Path:
    """Make a path absolute, with ~ expanded and links resolved."""
    # pathlib's expanduser raises for the name of an unknown user.
    return Path(os.path.realpath(os.path.expanduser(name)))  # noqa: PTH111


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary file that replaces `path` when the block ends without an error.

    It lies in the same directory, so that the replacement is atomic. OSError names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}-", suffix=path.suffix
        )
    except OSError as error:
        # The original message names the temporary file.
        raise OSError(error.errno, error.strerror, str(path)) from error
    os.close(handle)
    part = Path(name)
    try:
        yield part
        # mkstemp creates files with mode 0600.
        part.chmod(0o666 & ~UMASK)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON; NaN and infinity, which JSON lacks, become null."""
    with atomic_write(path) as part:
        part.write_text(json.dumps(_without_nan(content), indent=2, allow_nan=False) + "\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises ValueError if it is not JSON or exceeds LARGEST_JSON."""
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError(f"{path}: is larger than {LARGEST_JSON:,} bytes, the limit here")
    try:
        return json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError(f"{path}: is nested too deeply") from error


def write_csv(path: Path, header: Sequence[Any], rows: Sequence[Sequence[Any]]) -> None:
    """Write a table with one header line."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    with atomic_write(path) as part:
        part.write_text(text.getvalue())


# The files of a run and of a sweep. Each pattern has a wildcard, because glob does not find a
# broken link by its exact name.
RUN_FILES = ("*", "checkpoints/*", "figures/*", ".hydra/*", "00000/*", "00000/latents/*")
SWEEP_FILES = ("*.json", "*.journal", "report*", "report*/*")


def check_links(folder: Path, places: Sequence[str] = RUN_FILES) -> None:
    """Refuse links out of `folder`: writing through them would change other files.

    Args:
        folder: The directory of a run or a sweep.
        places: Patterns of the files to check, relative to `folder`.

    Raises:
        ValueError: If a link among these files leads out of `folder`.
    """
    inside = folder.resolve()
    for path in _glob_all(folder, places):
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(inside):
            raise ValueError(
                f"{path}: is a link that leads out of {folder};"
                " remove it, or choose another directory"
            )


def _glob_all(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """Collect all matches first, so that the caller may delete files."""
    matches: list[Path] = []
    for pattern in patterns:
        matches += folder.glob(pattern)
    return matches


def is_partial_file(path: Path) -> bool:
    """Whether a file is a temporary one of `atomic_write`, as killed processes leave them."""
    return re.fullmatch(r"\..+-[a-z0-9_]{8}(\.\w+)?", path.name) is not None


def remove_partial_files(run: Path) -> None:
    """Delete the temporary files of killed processes; the caller must hold the run's lock."""
    for path in _glob_all(run, RUN_FILES):
        if is_partial_file(path):
            path.unlink(missing_ok=True)


@contextmanager
def directory_lock(directory: Path, *, wait: bool = False) -> Iterator[bool]:
    """Lock a directory until the block ends; yields whether this process holds the lock.

    The lock of a process that dies is released at once. A directory that does not exist counts as
    locked.

    Args:
        directory: The directory of a run or a sweep; the lock is its file .lock.
        wait: Whether to wait until the lock is free.

    Raises:
        OSError: If the file system has no locks.
    """
    if not directory.is_dir():
        yield True
        return
    with (directory / ".lock").open("a") as file:
        # Repeated because another process may hold the lock briefly to read the run's state.
        for attempt in range(5):
            if _acquire(file, wait):
                yield True
                return
            time.sleep(0.05 * attempt)
        yield False


def _acquire(file: IO[str], wait: bool) -> bool:
    """Try to lock an open file; returns whether this process holds the lock."""
    try:
        return lock_descriptor(file.fileno(), blocking=wait)
    except OSError as error:
        reason = f"file locks do not work on this file system ({error.strerror})"
        raise OSError(error.errno, reason, file.name) from error
