"""The results of a run: results.json, the run's state, and the digests of its files."""

import hashlib
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from filelock import lock_descriptor

from digitlab.runs.files import is_partial_file, read_json

STATUSES = ("completed", "interrupted", "failed", "diverged", "pruned")
# The types in results.json. A file of another version may lack some; one of another program may
# hold anything.
FIELD_TYPES: dict[str, Any] = {
    **dict.fromkeys(("run_id", "status"), str),
    **dict.fromkeys(("config", "metrics", "baselines", "versions", "files"), dict),
    **dict.fromkeys(("code", "data", "machine", "objective"), dict | None),
    **dict.fromkeys(("seed", "epochs", "steps", "best_epoch"), int),
    **dict.fromkeys(("fit_seconds", "seconds"), float | int),
    **dict.fromkeys(("error", "classifier", "debug"), str | None),
    **dict.fromkeys(("warnings", "tags"), list),
    "note": str,
    # Of a trial of a search alone: that it is one, and whether it was evaluated on the test images
    # later, outside of the search.
    **dict.fromkeys(("trial", "tested"), bool),
}


@dataclass(frozen=True)
class Objective:
    """The metric that selects a run's best epoch and ranks runs.

    `val/<measure>` is its name if images are held out; without them, `train/<measure>` takes its
    place. Baselines are compared with `test/<measure>`. Any other name, such as `generated/fid`, is
    that of a single metric.
    """

    name: str = "val/loss"
    direction: str = "min"
    """Whether lower (`min`) or higher (`max`) values are better."""

    def __post_init__(self) -> None:
        has_name = isinstance(self.name, str) and re.fullmatch(r"\w+/[\w/.+@-]+", self.name)
        if not has_name or self.direction not in ("min", "max"):
            raise ValueError(
                f"objective=({self.name!r}, {self.direction!r}): must be the name of a metric, as"
                " val/accuracy, and its direction, min or max"
            )

    @property
    def measure(self) -> str:
        """The name without the part of the data: `loss` of `val/loss`."""
        return self.name.removeprefix("val/").removeprefix("train/")

    def on(self, part: str) -> str:
        """The name of the metric on another part of the data, `train` or `test`."""
        return self.name if self.measure == self.name else f"{part}/{self.measure}"

    def cost(self, values: Any) -> Any:
        """Return a value, an array or a Series with the sign that makes lower values better."""
        return -values if self.direction == "max" else values


LOSS = Objective()


def read_results(run: Path) -> dict[str, Any] | None:
    """Read results.json of a run; None if it is missing or this program cannot have written it.

    A completed run of an earlier version, without `objective`, gets the loss as its objective.
    """
    try:
        content = read_json(run / "results.json")
    except (OSError, ValueError):
        return None
    required = {"run_id", "status", "seed", "config", "metrics"}
    if not isinstance(content, dict) or not required <= set(content):
        return None
    for key, kind in FIELD_TYPES.items():
        if key in content and not isinstance(content[key], kind):
            return None
    numbers = [content.get(key) for key in ("seed", "epochs", "steps", "fit_seconds", "seconds")]
    numbers += [*content["metrics"].values(), *content.get("baselines", {}).values()]
    strings = [text for key in ("warnings", "tags") for text in content.get(key, [])]
    strings += content.get("files", {}).values()
    if not all(n is None or _is_finite(n) for n in numbers):
        return None
    if not all(isinstance(item, str) for item in strings) or content["status"] not in STATUSES:
        return None
    content.setdefault("objective", None)
    if content["status"] == "completed":
        content["objective"] = content["objective"] or _earlier_objective(content["metrics"])
    return content if _has_valid_objective(content) else None


def _earlier_objective(metrics: Mapping[str, float]) -> dict[str, Any]:
    """The objective of a completed run from before results.json had one."""
    name = "val/loss" if "val/loss" in metrics else "train/loss"
    return {"name": name, "value": metrics.get(name), "direction": "min"}


def _has_valid_objective(content: Mapping[str, Any]) -> bool:
    """Whether the objective is valid, and has a value if the run is completed."""
    entry, is_completed = content["objective"], content["status"] == "completed"
    if entry is None:
        return not is_completed
    try:
        objective = Objective(entry["name"], entry["direction"])
    except (KeyError, ValueError):
        return False
    value, test = entry.get("value"), content["metrics"].get(objective.on("test"), 0.0)
    return (value is None or _is_finite(value)) and not (is_completed and None in (value, test))


def _is_finite(number: Any) -> bool:
    return isinstance(number, float | int) and abs(number) <= sys.float_info.max


def reported_status(results: Mapping[str, Any]) -> str:
    """The status that reports show: `debug` for a completed debug run, which they do not rank."""
    is_debug = results["status"] == "completed" and results.get("debug")
    return "debug" if is_debug else str(results["status"])


def selection_score(results: Mapping[str, Any]) -> tuple[Objective, float]:
    """Return the objective of a completed run and its value."""
    entry = results["objective"]
    return Objective(entry["name"], entry["direction"]), entry["value"]


def best_checkpoint(run: Path) -> Path:
    """Return the path of the best epoch's checkpoint. Raises ValueError if it is missing."""
    path = run / "checkpoints" / "best.ckpt"
    if not path.is_file():
        raise ValueError(
            f"{run}: holds no checkpoint;"
            " name the directory of a completed run, as outputs/runs/NAME"
        )
    return path


BASELINES = {"mean_image": "predicting the mean image", "pca": "PCA with the same latent size"}


def is_no_better(value: Any, baseline: Any, objective: Objective = LOSS) -> Any:
    """Whether a value, or each of a Series, is at most 1 % better than a baseline."""
    return objective.cost(value) >= objective.cost(baseline) - 0.01 * abs(baseline)


def find_unbeaten(value: float, baselines: Mapping[str, float], objective: Objective) -> str:
    """Return the name of the first baseline if a value is no better than it, else ""."""
    name = next(iter(baselines), "")
    return name if name and is_no_better(value, baselines[name], objective) else ""


def describe_baseline(name: str) -> str:
    """Describe a baseline for "no better than ...": one of a plugin by its name."""
    return BASELINES.get(name, f"the {name.replace('_', ' ')}")


# The files of a completed run that must not change: all but its logs and results.json.
OUTPUTS = (
    "checkpoints/*.ckpt",
    "figures/*.png",
    "metrics.csv",
    "confusion_matrix.csv",
    "centers.npy",
    "projector_config.pbtxt",
    "00000/latents/*",
)


# The files of logger=csv, and those of a profiler, see `make_profiler`.
CSV_LOGGER = ("csv/metrics.csv", "csv/hparams.yaml")
PROFILES = "fit-profile*"


def file_digests(run: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of OUTPUTS, by its path in the run; ignores other files."""
    files: list[Path] = []
    for pattern in OUTPUTS:
        files += [path for path in run.glob(pattern) if path.is_file()]
    digests = {}
    for path in sorted(files):
        if not is_partial_file(path):
            digests[path.relative_to(run).as_posix()] = hashlib.sha256(
                path.read_bytes()
            ).hexdigest()
    return digests


def find_damage(run: Path, results: Mapping[str, Any]) -> list[str]:
    """List the files of a completed run that are missing or changed since it ended."""
    now, files = file_digests(run), results.get("files", {})
    outputs = [name for name in files if any(fnmatch(name, pattern) for pattern in OUTPUTS)]
    return [name for name in outputs if now.get(name) != files[name]]


def is_foreign(run: Path) -> bool:
    """Whether a directory holds results of another program: without .lock, our first file."""
    patterns = ("results.json", "checkpoints/*", "events.out.tfevents.*")
    has_results = any(any(run.glob(pattern)) for pattern in patterns)
    return has_results and not (run / ".lock").exists() and read_results(run) is None


def is_running(run: Path) -> bool:
    """Whether a process works on a run. The check creates no file and needs no write permission."""
    try:
        with (run / ".lock").open("rb") as file:
            # Repeated because another process may hold the lock briefly for this same check.
            for attempt in range(3):
                if lock_descriptor(file.fileno(), blocking=False):
                    return False
                time.sleep(0.01 * attempt)
        return True
    except FileNotFoundError:
        return False
    except PermissionError:
        raise
    except OSError:
        # Without working locks on the file system, no process holds one.
        return False


def run_state(run: Path) -> str:
    """Return `new`, `running`, `damaged`, `foreign`, or the status in results.json."""
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
    """Whether a run has started or ended since a moment.

    Args:
        run: The run's directory.
        moment: Seconds since the epoch by the clock of the file system; 0 means never.
    """
    path = run / "results.json"
    return moment > 0 and path.is_file() and path.stat().st_mtime >= moment


def find_conflict(run: Path, expected: str) -> str:
    """Say what else a directory holds than the run with the id `expected`; empty if nothing."""
    if is_foreign(run):
        return "results that digitlab did not write"
    results = read_results(run)
    if results and results["run_id"] != expected:
        return "a run of another configuration"
    return ""


def check_same_run(run: Path, expected: str) -> None:
    """Raise ValueError if a directory holds anything but the run with the id `expected`."""
    if conflict := find_conflict(run, expected):
        raise ValueError(f"{run}: holds {conflict}; choose another hydra.run.dir")


def remove_outputs(run: Path) -> None:
    """Delete the outputs of an earlier start, but keep its logs and settings."""
    # results.json first: without it, the other files do not count as a completed run.
    outputs = (*OUTPUTS, "events.out.tfevents.*", *CSV_LOGGER, PROFILES, "report.html")
    for pattern in ("results.json", *outputs):
        for path in run.glob(pattern):
            path.unlink(missing_ok=True)
