"""A search ends a run early: its results, what it does when started again, and a whole search."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from digitlab.runs.files import write_json
from digitlab.runs.results import run_state
from digitlab.training import experiment, fitting
from digitlab.training.experiment import run_experiment

from ..conftest import compose, error_message, load_results, run_in_process
from .test_experiment import KMEANS


@dataclass
class Trial:
    """A trial that its search gives up in one epoch."""

    last: int
    direction: str = "minimize"
    reported: dict[int, float] = field(default_factory=dict)

    def report(self, value: float, step: int) -> bool:
        """Whether this is the last epoch."""
        self.reported[step] = value
        return step == self.last


@pytest.fixture
def prune(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function that makes runs of this process trials of a search."""

    def start(**values: Any) -> Any:
        trial = Trial(**values) if values else None
        for module in (fitting, experiment):
            monkeypatch.setattr(module, "current_trial", lambda: trial)
        return trial

    return start


def test_a_pruned_run_ends_without_a_failure_and_stays(
    prune: Callable[..., Any], overrides: list[str], tmp_path: Path
) -> None:
    """It keeps its epochs and metrics, is not trained on, and `force` trains it in full."""
    trial = prune(last=2)
    results = run_in_process([*KMEANS, *overrides], tmp_path)
    assert (results["status"], results["epochs"], results["error"]) == ("pruned", 2, None)
    assert trial.reported.keys() == {1, 2}
    assert results["metrics"]["val/loss"] == min(trial.reported.values())
    assert results["objective"]["value"] == results["metrics"]["val/loss"]
    assert "test/loss" not in results["metrics"]
    assert run_state(tmp_path) == "pruned"
    events = EventAccumulator(str(tmp_path)).Reload()
    assert "status/text_summary" in events.Tags()["tensors"]

    # Killed after the decision and before it was recorded.
    write_json(tmp_path / "results.json", results | {"status": "interrupted"})
    again = run_in_process([*KMEANS, *overrides], tmp_path)
    assert (again["status"], again["epochs"]) == ("pruned", 2)
    prune()
    (cfg,) = compose(*KMEANS, *overrides)
    assert math.isnan(run_experiment(cfg, tmp_path))
    forced = run_in_process([*KMEANS, *overrides, "force=true"], tmp_path)
    assert (forced["status"], forced["epochs"]) == ("completed", 3)


def test_the_last_epoch_is_not_pruned(
    prune: Callable[..., Any], overrides: list[str], tmp_path: Path
) -> None:
    """Nothing is saved by it."""
    prune(last=3)
    assert run_in_process([*KMEANS, *overrides], tmp_path)["status"] == "completed"


def test_a_search_in_the_wrong_direction_is_refused(
    prune: Callable[..., Any], overrides: list[str], tmp_path: Path
) -> None:
    """The error names the direction of the model's objective."""
    prune(last=3, direction="maximize")
    with pytest.raises(Exception, match=r"search with hydra.sweeper.direction=minimize"):
        run_in_process([*KMEANS, *overrides], tmp_path)


def test_a_search_cannot_be_forced() -> None:
    """It continues towards its total; the message names the remedy."""
    pytest.importorskip("optuna")
    message = error_message("-m", "sweep=search/kmeans", "force=true")
    assert message.startswith("force=true: a search continues; to start over, choose another")


def test_a_trial_leaves_out_the_test_images(
    prune: Callable[..., Any], overrides: list[str], tmp_path: Path
) -> None:
    """Outside the search the same run is evaluated on them, without training it again."""
    prune(last=0)
    trial = run_in_process([*KMEANS, *overrides], tmp_path / "run")
    assert (trial["status"], trial["trial"], trial["tested"]) == ("completed", True, False)
    assert not [name for name in trial["metrics"] if name.startswith("test/")]
    prune()
    plain = run_in_process([*KMEANS, *overrides], tmp_path / "plain")
    assert "trial" not in plain
    assert plain["run_id"] == trial["run_id"]
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    written = last.stat().st_mtime_ns
    again = run_in_process([*KMEANS, *overrides], tmp_path / "run")
    assert last.stat().st_mtime_ns == written
    assert again["metrics"] == plain["metrics"]
    assert plain["metrics"].items() >= trial["metrics"].items()
    assert again["objective"] == trial["objective"]
    assert (again["trial"], again["tested"]) == (True, True)


@pytest.mark.slow
def test_a_search_reports_what_it_completed_and_pruned(
    run_train: Any, overrides: list[str], tmp_path: Path
) -> None:
    """It ends with exit code 0, continues to a larger total, and shares its jobs with a grid."""
    pytest.importorskip("optuna")
    command = ["-m", "sweep=search/kmeans", *overrides, "+hydra.sweeper.pruner.n_startup_trials=1"]
    command += ['hydra.sweeper.confirm=["seed=1"]']
    done = run_train(*command, "hydra.sweeper.n_trials=4")
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "outputs" / "sweeps" / "search" / "kmeans"
    assert "Again with seed=1: 0.00" in done.stdout
    before = {path: path.read_bytes() for path in folder.glob("*/results.json")}
    assert len(before) == 4 + 1
    done = run_train(*command, "hydra.sweeper.n_trials=6")
    assert done.returncode == 0, done.stdout + done.stderr
    assert before == {path: path.read_bytes() for path in before}
    runs = [load_results(path.parent) for path in folder.glob("*/results.json")]
    # The other seed is that of the best trials, run again.
    trials = [run for run in runs if run["seed"] == 0]
    assert len(trials) == 6
    assert {run["status"] for run in trials} == {"completed", "pruned"}
    # The test images measure the best trial alone, in the runs that confirm it.
    assert {"test/loss" in run["metrics"] for run in trials} == {False}
    assert {"test/loss" in run["metrics"] for run in runs if run["seed"] == 1} == {True}
    best = min(run["objective"]["value"] for run in trials if run["status"] == "completed")
    assert f"completed {best:.6g}" in done.stdout
    states = Counter(run["status"] for run in runs)
    (counts,) = (line for line in done.stdout.splitlines() if re.match(r"\d jobs: ", line))
    assert {f"{number} {state}" for state, number in states.items()} == {*counts[8:-1].split(", ")}
    assert "Not completed" not in done.stdout
    pruned = next(run for run in trials if run["status"] == "pruned")
    plan = json.loads((folder / "sweep.json").read_text())["jobs"]
    lines = next(job["lines"] for job in plan if job["name"] == pruned["run_id"])
    grid = [line for line in lines if not line.startswith("sweep=")]
    out = run_train("-m", "model=kmeans", *grid, f"hydra.sweep.dir={folder}", "dry_run=true")
    assert "1 to skip" in out.stdout, out.stdout + out.stderr
