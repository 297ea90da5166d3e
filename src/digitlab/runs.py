"""A run on disk: its identity, results.json, who works on it. What is written here appears whole or not at all."""

import csv
import hashlib
import io
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from filelock import lock_descriptor

UMASK = os.umask(0o022)  # can be read by setting it alone
os.umask(UMASK)
LARGEST_JSON = 2**26  # bytes: a sweep of 300,000 jobs

# -- files ----------------------------------------------------------------------------------------------


def resolved(name: str) -> Path:
    """The one path of a folder that may be named by several: relative, from ~ on, through links."""
    return Path(os.path.realpath(os.path.expanduser(name)))  # noqa: PTH111, as pathlib's raises for ~nobody


@contextmanager
def whole(path: Path) -> Iterator[Path]:
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
    with whole(path) as part:
        part.write_text(json.dumps(_finite(content), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
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
    with whole(path) as part:
        part.write_text(text.getvalue())


# -- identity -------------------------------------------------------------------------------------------


DATA_PLACE = ("data.root", "data.verify")  # where the data lies and whether it is checked: changes no result


def run_id(config: Mapping[str, Any]) -> str:
    """Twelve hex digits that two resolved configurations share if they differ only in what changes no result."""
    kept = dict(config)
    kept["data"] = {key: value for key, value in config["data"].items() if f"data.{key}" not in DATA_PLACE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by their dotted keys, as a command line writes them; lists stay lists."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


@cache  # the code that was loaded, whatever its files become meanwhile
def code_version() -> dict[str, Any]:
    """The digest of the package's files; the git commit, and if they differ from it: None where git cannot tell."""
    here, content = Path(__file__).parent, hashlib.sha256()
    for path in sorted(here.glob("*.py")):
        content.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        found = {"sha": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", "*.py"))}
    except (OSError, subprocess.CalledProcessError):
        found = {"sha": None, "dirty": None}
    return found | {"digest": content.hexdigest()[:12]}


def other_code(results: Mapping[str, Any]) -> str:
    """By what other code a run was made than runs now, in words; empty where by the same.

    That is a matter of the package's files: a commit of other files changes no result.
    """
    code, now = results.get("code") or {}, code_version()
    if code.get("digest") == now["digest"]:
        return ""
    sha = str(code.get("sha"))[:12]
    return f"by other code, commit {sha}" + (", changed since or before" if str(now["sha"]).startswith(sha) else "")


@cache
def library_versions() -> dict[str, str]:
    """The versions that results depend on."""
    names = ("digitlab", "torch", "lightning", "hydra-core", "numpy", "scikit-learn")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


# -- a run that may be there already --------------------------------------------------------------------


STATUSES = ("completed", "interrupted", "failed", "diverged")
# What results.json holds; files of other versions, or of strangers, may lack some or hold anything.
KINDS: dict[str, Any] = {
    **dict.fromkeys(("run_id", "status"), str),
    **dict.fromkeys(("config", "metrics", "baselines", "versions", "files"), dict),
    **dict.fromkeys(("code", "data", "machine"), dict | None),
    **dict.fromkeys(("seed", "epochs", "steps", "best_epoch"), int),
    **dict.fromkeys(("fit_seconds", "seconds"), float | int),
    **dict.fromkeys(("error", "classifier"), str | None),
    "warnings": list,
}


def read_results(run: Path) -> dict[str, Any] | None:
    """results.json of a run, or None where there is none, or one that this program cannot have written."""
    try:
        content = read_json(run / "results.json")
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or not {"run_id", "status", "seed", "config", "metrics"} <= set(content):
        return None
    if not all(isinstance(content[key], kind) for key, kind in KINDS.items() if key in content):
        return None
    numbers = [content.get(key) for key in ("seed", "epochs", "steps", "fit_seconds", "seconds")]
    numbers += [*content["metrics"].values(), *content.get("baselines", {}).values()]
    words = [*content.get("warnings", []), *content.get("files", {}).values()]
    if not all(n is None or (isinstance(n, float | int) and abs(n) <= sys.float_info.max) for n in numbers):
        return None
    if not all(isinstance(word, str) for word in words) or content["status"] not in STATUSES:
        return None
    if content["status"] == "completed":
        metrics = {"train/loss": None, "test/loss": None, **content["metrics"]}
        if None in (score(metrics)[1], metrics["test/loss"]):
            return None
    return content


def score(metrics: Mapping[str, float]) -> tuple[str, float]:
    """What a search minimises, by its name: the loss on held-out images; without any, on the training images."""
    name = "val/loss" if "val/loss" in metrics else "train/loss"
    return name, metrics[name]


def checkpoint(run: Path) -> Path:
    """The checkpoint of a run's best epoch. Raises ValueError where there is none."""
    path = run / "checkpoints" / "best.ckpt"
    if not path.is_file():
        raise ValueError(f"{run}: holds no checkpoint; name the directory of a completed run, as outputs/runs/NAME")
    return path


def no_better(loss: float, baseline: float) -> bool:
    """Whether a loss counts as no better than a baseline's: within 1 % it does."""
    return loss >= 0.99 * baseline


# Where the files of a run and of a sweep lie, with a sign in each that stands for others: by a whole name Python's glob
# finds no link to what is not there.
RUN_FILES = ("*", "checkpoints/*", "figures/*", ".hydra/*", "00000/*", "00000/latents/*")
SWEEP_FILES = ("*.json", "report*", "report*/*")
# What a finished run should keep as it is: all that it writes but its logs and results.json.
LASTING = (
    "checkpoints/*.ckpt",
    "figures/*.png",
    "metrics.csv",
    "confusion_matrix.csv",
    "centers.npy",
    "projector_config.pbtxt",
    "00000/latents/*",
)


def digests(run: Path) -> dict[str, str]:
    """The SHA-256 of each file of LASTING; not of what else somebody has put there."""
    files = sorted(path for pattern in LASTING for path in run.glob(pattern) if path.is_file() and not leftover(path))
    return {path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def damage(run: Path, results: Mapping[str, Any]) -> list[str]:
    """The files of a finished run that are gone, or not what they were when it ended."""
    now, files = digests(run), results.get("files", {})
    lasting = [name for name in files if any(fnmatch(name, pattern) for pattern in LASTING)]
    return [name for name in lasting if now.get(name) != files[name]]


def foreign(run: Path) -> bool:
    """Whether there are results in the directory that no run of this program can have left: its first file is .lock."""
    theirs = any(any(run.glob(pattern)) for pattern in ("results.json", "checkpoints/*", "events.out.tfevents.*"))
    return theirs and not (run / ".lock").exists() and read_results(run) is None


def busy(run: Path) -> bool:
    """Whether a process is at a run. To look makes no file, and needs no leave to write one."""
    try:
        with (run / ".lock").open("rb") as file:
            for attempt in range(3):  # another process may only be looking as well
                if lock_descriptor(file.fileno(), blocking=False):
                    return False
                time.sleep(0.01 * attempt)
        return True
    except FileNotFoundError:
        return False
    except PermissionError:
        raise
    except OSError:  # nobody holds a lock where locks do not work
        return False


def state(run: Path) -> str:
    """`new`, `running`, `damaged`, `foreign`, or the status that results.json tells."""
    if foreign(run):
        return "foreign"
    if busy(run):
        return "running"
    results = read_results(run)
    if results is None:
        return "damaged" if (run / "checkpoints").exists() else "new"
    if results["status"] == "completed" and damage(run, results):
        return "damaged"
    return str(results["status"])


def refuse_links(folder: Path, places: Sequence[str] = RUN_FILES) -> None:
    """Raise ValueError where a link among the files of a run leads out of it, and with it what is written there.

    `places` are patterns within the folder, by default those of a run's files.
    """
    here = folder.resolve()
    for path in [path for place in places for path in folder.glob(place)]:
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(here):
            raise ValueError(f"{path}: is a link that leads out of {folder}; remove it, or choose another directory")


def begun_since(run: Path, moment: float) -> bool:
    """Whether a run has been begun or done since a moment by the clock of the file system; never since 0."""
    path = run / "results.json"
    return moment > 0 and path.is_file() and path.stat().st_mtime >= moment


def stranger(run: Path, expected: str) -> str:
    """What lies in a directory that is not of the run with the id `expected`, in words; else empty."""
    if foreign(run):
        return "results that digitlab did not write"
    there = read_results(run)
    return "a run of another configuration" if there and there["run_id"] != expected else ""


def refuse_other(run: Path, expected: str) -> None:
    """Raise ValueError where what lies in a directory is not of the run with the id `expected`."""
    if what := stranger(run, expected):
        raise ValueError(f"{run}: holds {what}; choose another hydra.run.dir")


def leftover(path: Path) -> bool:
    """Whether a file is one that `whole` was writing when its process was killed."""
    return re.fullmatch(r"\..+-[a-z0-9_]{8}(\.\w+)?", path.name) is not None


def clear(run: Path) -> None:
    """Delete what killed processes were writing; nobody may be at the run."""
    for path in [path for pattern in RUN_FILES for path in run.glob(pattern) if leftover(path)]:
        path.unlink(missing_ok=True)


def wipe(run: Path) -> None:
    """Delete what an earlier start has left, but its logs and settings."""
    # results.json first: without it nothing of the others is taken for finished.
    for pattern in ("results.json", *LASTING, "events.out.tfevents.*"):
        for path in run.glob(pattern):
            path.unlink(missing_ok=True)


@contextmanager
def lock(directory: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether this process has a directory to itself until the block ends; with `wait`, once it has.

    A process that dies lets go at once. Raises OSError where the file system has no locks.
    """
    if not directory.is_dir():
        yield True  # nobody is there yet
        return
    with (directory / ".lock").open("a") as file:
        for attempt in range(5):  # another process may only be looking at the run's state
            if _locked(file, wait):
                yield True
                return
            time.sleep(0.05 * attempt)
        yield False


def _locked(file: IO[str], wait: bool) -> bool:
    """Whether this process got the lock of an open file."""
    try:
        return lock_descriptor(file.fileno(), blocking=wait)
    except OSError as error:
        told = f"file locks do not work on this file system ({error.strerror})"
        raise OSError(error.errno, told, file.name) from error
