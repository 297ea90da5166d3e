"""A run in its directory: results.json, its state, and whether its files are what they were."""

import hashlib
import sys
import time
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from filelock import lock_descriptor

from digitlab.runs.files import is_partial_file, read_json, resolve_path
from digitlab.runs.provenance import describe_other_code

STATUSES = ("completed", "interrupted", "failed", "diverged")


# What results.json holds; files of other versions, or of strangers, may lack some or hold anything.
FIELD_TYPES: dict[str, Any] = {
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
    if not all(isinstance(content[key], kind) for key, kind in FIELD_TYPES.items() if key in content):
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
        if None in (selection_score(metrics)[1], metrics["test/loss"]):
            return None
    return content


def selection_score(metrics: Mapping[str, float]) -> tuple[str, float]:
    """What a search minimises, by its name: the loss on held-out images; without any, on the training images."""
    name = "val/loss" if "val/loss" in metrics else "train/loss"
    return name, metrics[name]


def best_checkpoint(run: Path) -> Path:
    """The checkpoint of a run's best epoch. Raises ValueError where there is none."""
    path = run / "checkpoints" / "best.ckpt"
    if not path.is_file():
        raise ValueError(f"{run}: holds no checkpoint; name the directory of a completed run, as outputs/runs/NAME")
    return path


def is_no_better(loss: float, baseline: float) -> bool:
    """Whether a loss counts as no better than a baseline's: within 1 % it does."""
    return loss >= 0.99 * baseline


# What a finished run should keep as it is: all that it writes but its logs and results.json.
OUTPUTS = (
    "checkpoints/*.ckpt",
    "figures/*.png",
    "metrics.csv",
    "confusion_matrix.csv",
    "centers.npy",
    "projector_config.pbtxt",
    "00000/latents/*",
)


def file_digests(run: Path) -> dict[str, str]:
    """The SHA-256 of each file of OUTPUTS; not of what else somebody has put there."""
    files = sorted(
        path for pattern in OUTPUTS for path in run.glob(pattern) if path.is_file() and not is_partial_file(path)
    )
    return {path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def find_damage(run: Path, results: Mapping[str, Any]) -> list[str]:
    """The files of a finished run that are gone, or not what they were when it ended."""
    now, files = file_digests(run), results.get("files", {})
    lasting = [name for name in files if any(fnmatch(name, pattern) for pattern in OUTPUTS)]
    return [name for name in lasting if now.get(name) != files[name]]


def is_foreign(run: Path) -> bool:
    """Whether there are results in the directory that no run of this program can have left: its first file is .lock."""
    theirs = any(any(run.glob(pattern)) for pattern in ("results.json", "checkpoints/*", "events.out.tfevents.*"))
    return theirs and not (run / ".lock").exists() and read_results(run) is None


def is_running(run: Path) -> bool:
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


def run_state(run: Path) -> str:
    """`new`, `running`, `damaged`, `foreign`, or the status that results.json tells."""
    if is_foreign(run):
        return "foreign"
    if is_running(run):
        return "running"
    results = read_results(run)
    if results is None:
        return "damaged" if (run / "checkpoints").exists() else "new"
    if results["status"] == "completed" and find_damage(run, results):
        return "damaged"
    return str(results["status"])


def started_since(run: Path, moment: float) -> bool:
    """Whether a run has been begun or done since a moment by the clock of the file system; never since 0."""
    path = run / "results.json"
    return moment > 0 and path.is_file() and path.stat().st_mtime >= moment


def find_conflict(run: Path, expected: str) -> str:
    """What lies in a directory that is not of the run with the id `expected`, in words; else empty."""
    if is_foreign(run):
        return "results that digitlab did not write"
    there = read_results(run)
    return "a run of another configuration" if there and there["run_id"] != expected else ""


def check_same_run(run: Path, expected: str) -> None:
    """Raise ValueError where what lies in a directory is not of the run with the id `expected`."""
    if what := find_conflict(run, expected):
        raise ValueError(f"{run}: holds {what}; choose another hydra.run.dir")


def remove_outputs(run: Path) -> None:
    """Delete what an earlier start has left, but its logs and settings."""
    # results.json first: without it nothing of the others is taken for finished.
    for pattern in ("results.json", *OUTPUTS, "events.out.tfevents.*"):
        for path in run.glob(pattern):
            path.unlink(missing_ok=True)


def describe_origin(run: Path, data_root: str) -> str:
    """By what other code, and from what other `data_root`, a completed run was made.

    Compares the names of the folders; comparing the data would take a second.

    Returns:
        Words for a user, empty if code and folder are the same.
    """
    results = read_results(run) or {}
    data = results.get("config", {}).get("data")
    root = data.get("root") if isinstance(data, dict) else None
    remarks = [describe_other_code(results)]
    if not isinstance(root, str) or resolve_path(root) != resolve_path(data_root):
        remarks.append(f"from data.root={root}")
    return ", ".join(remark for remark in remarks if remark)
