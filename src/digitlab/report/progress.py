"""How far a sweep is: the lines that its jobs print, and what its page says while it runs."""

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from digitlab.formatting import format_loss
from digitlab.runs.results import Objective, read_results, reported_status, selection_score
from hydra_plugins.resumable_sweeper.jobs import PLAN, Planned, read_plan, short_lines

ENDED = ("completed", "debug", "failed", "diverged", "pruned")


class Standing(NamedTuple):
    """How a job that has started stands."""

    status: str
    # None unless it is completed, and no debug run.
    objective: Objective | None
    score: float | None
    seconds: float
    epochs: int
    error: str
    # When results.json was written, in seconds since the epoch.
    written: float


# What this process has read, by the path of the file, with what tells that the file is the same.
_known: dict[str, tuple[tuple[int, int, int], Any]] = {}


def _read_once(path: Path, read: Callable[[float], Any]) -> Any:
    """The result of `read`, called with the time of the file; None without a file.

    It is called again if the file changed.
    """
    try:
        stat = path.stat()
    except OSError:
        return None
    stamp, name = (stat.st_mtime_ns, stat.st_size, stat.st_ino), str(path)
    known = _known.get(name)
    if known is None or known[0] != stamp:
        known = _known[name] = stamp, read(stat.st_mtime)
    return known[1]


def read_standing(run: Path) -> Standing | None:
    """Read how a job stands; None if it has no results."""
    path = run / "results.json"
    standing: Standing | None = _read_once(
        path, lambda written: _describe(read_results(run), written)
    )
    return standing


def read_jobs(sweep_dir: Path) -> Mapping[str, Planned]:
    """Read the plan of a sweep; empty if there is none."""
    return _read_once(sweep_dir / PLAN, lambda _: read_plan(sweep_dir)) or {}


def _describe(results: dict[str, Any] | None, written: float) -> Standing | None:
    if results is None:
        return None
    objective, score, status = None, None, reported_status(results)
    if status == "completed":
        objective, score = selection_score(results)
    seconds, epochs = results.get("seconds") or 0.0, results.get("epochs") or 0
    error = results.get("error") or ""
    return Standing(status, objective, score, seconds, epochs, error, written)


def opening(sweep_dir: Path, name: str) -> str:
    """Which job of a sweep starts: `Job 2 of 6: optimizer.lr=0.1`."""
    plan = read_jobs(sweep_dir)
    if name not in plan:
        # Another sweeper chooses its jobs as it goes.
        return f"Job {name}"
    number = list(plan).index(name) + 1
    return f"Job {number} of {len(plan)}: {short_lines(plan)[name]}"


def standing(sweep_dir: Path, name: str) -> str:
    """How far the sweep is after a job: its number, the best score so far, the time left.

    Of a sweep over models with different objectives, the best score of each is given.
    """
    plan = read_jobs(sweep_dir)
    if name not in plan:
        return "Job ended"
    states = {job: read_standing(sweep_dir / job) for job in plan}
    message = f"Job {list(plan).index(name) + 1} of {len(plan)} ended"
    lines, words = short_lines(plan), []
    for job, objective, score in find_best(states):
        words.append(f"{objective.name} {format_loss(score)} ({lines[job]})")
    if words:
        message += f"; best so far: {', '.join(words)}"
    left = describe_time_left(plan, states, plan[name].requested)
    return f"{message}; {left}" if left else message


def find_best(states: Mapping[str, Standing | None]) -> list[tuple[str, Objective, float]]:
    """The best completed job of each objective, with its score."""
    best: dict[tuple[str, str], tuple[str, Objective, float]] = {}
    for job, state in states.items():
        if state is None or state.objective is None or state.score is None:
            continue
        objective = state.objective
        measure = objective.measure, objective.direction
        if measure not in best or objective.cost(state.score) < objective.cost(best[measure][2]):
            best[measure] = job, objective, state.score
    return list(best.values())


def describe_time_left(
    plan: Mapping[str, Planned],
    states: Mapping[str, Standing | None],
    start: float,
    shares: Mapping[str, float] = MappingProxyType({}),
) -> str:
    """The time left at the pace since `start`; empty where nothing tells it or nothing is left.

    Of jobs that run, `shares` may say which share of their epochs is done.
    """
    minutes = minutes_left(plan, states, start, shares)
    if minutes is None:
        return ""
    return "less than a minute left" if minutes < 1 else f"about {minutes:.0f} min left"


def minutes_left(
    plan: Mapping[str, Planned],
    states: Mapping[str, Standing | None],
    start: float,
    shares: Mapping[str, float] = MappingProxyType({}),
) -> float | None:
    """The time left at the pace since `start`; None where nothing tells it or nothing is left.

    The pace is that of the epochs done, with any number of workers.
    """
    done = left = 0.0
    for name, job in plan.items():
        state = states[name]
        if state is not None and state.status in ENDED:
            done += epochs(job) if state.written >= start else 0
        elif job.requested >= start:
            share = shares.get(name, 0.0)
            done += share * epochs(job)
            left += (1 - share) * epochs(job)
    return (time.time() - start) / done * left / 60 if done and left else None


def epochs(job: Planned) -> int:
    """The epochs of a job relative to others: equal for all, unless they are swept."""
    match = re.search(r"(?:^| )trainer\.max_epochs=(\d+)", " ".join(job.lines))
    return int(match[1]) if match else 1
