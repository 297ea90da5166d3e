"""Files that appear whole or not at all, and who works on a directory."""

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

UMASK = os.umask(0o022)  # can be read by setting it alone
os.umask(UMASK)


LARGEST_JSON = 2**26  # bytes: a sweep of 300,000 jobs


def resolve_path(name: str) -> Path:
    """The one path of a folder that may be named by several: relative, from ~ on, through links."""
    return Path(os.path.realpath(os.path.expanduser(name)))  # noqa: PTH111, as pathlib's raises for ~nobody


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A file to write beside `path`, which takes its place when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=path.suffix)
    except OSError as error:  # would name the file beside it
        raise OSError(error.errno, error.strerror, str(path)) from error
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(0o666 & ~UMASK)  # mkstemp's own is 0600
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON; a number that is not finite becomes null, as JSON has none."""
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
    """What a JSON file holds. Raises ValueError where it is none, or larger than any that is written here."""
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError(f"{path}: is larger than {LARGEST_JSON:,} bytes, which no file of a run is")
    try:
        return json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError(f"{path}: holds brackets without end") from error


def write_csv(path: Path, header: Sequence[Any], rows: Sequence[Sequence[Any]]) -> None:
    """Write a table with one header line."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    with atomic_write(path) as part:
        part.write_text(text.getvalue())


# Where the files of a run and of a sweep lie, with a sign in each that stands for others: by a whole name Python's glob
# finds no link to what is not there.
RUN_FILES = ("*", "checkpoints/*", "figures/*", ".hydra/*", "00000/*", "00000/latents/*")


SWEEP_FILES = ("*.json", "report*", "report*/*")


def check_links(folder: Path, places: Sequence[str] = RUN_FILES) -> None:
    """Raise ValueError where a link among the files of a run leads out of it, and with it what is written there.

    `places` are patterns within the folder, by default those of a run's files.
    """
    here = folder.resolve()
    for path in [path for place in places for path in folder.glob(place)]:
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(here):
            raise ValueError(f"{path}: is a link that leads out of {folder}; remove it, or choose another directory")


def is_partial_file(path: Path) -> bool:
    """Whether a file is one that `whole` was writing when its process was killed."""
    return re.fullmatch(r"\..+-[a-z0-9_]{8}(\.\w+)?", path.name) is not None


def remove_partial_files(run: Path) -> None:
    """Delete what killed processes were writing; nobody may be at the run."""
    for path in [path for pattern in RUN_FILES for path in run.glob(pattern) if is_partial_file(path)]:
        path.unlink(missing_ok=True)


@contextmanager
def directory_lock(directory: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether this process has a directory to itself until the block ends; with `wait`, once it has.

    A process that dies lets go at once. Raises OSError where the file system has no locks.
    """
    if not directory.is_dir():
        yield True  # nobody is there yet
        return
    with (directory / ".lock").open("a") as file:
        for attempt in range(5):  # another process may only be looking at the run's state
            if _acquire(file, wait):
                yield True
                return
            time.sleep(0.05 * attempt)
        yield False


def _acquire(file: IO[str], wait: bool) -> bool:
    """Whether this process got the lock of an open file."""
    try:
        return lock_descriptor(file.fileno(), blocking=wait)
    except OSError as error:
        told = f"file locks do not work on this file system ({error.strerror})"
        raise OSError(error.errno, told, file.name) from error
