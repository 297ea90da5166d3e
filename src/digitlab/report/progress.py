"""How far a sweep is: the lines that its jobs print."""

import re
import time
from collections.abc import Mapping
from pathlib import Path

from digitlab.formatting import format_loss
from digitlab.runs.results import read_results, selection_score
from hydra_plugins.resumable_sweeper.jobs import Planned, read_plan, short_lines

ENDED = ("completed", "failed", "diverged", "pruned")


def opening(sweep_dir: Path, name: str) -> str:
    """Which job of a sweep starts: `Job 2 of 6: optimizer.lr=0.1`."""
    plan = read_plan(sweep_dir)
    if name not in plan:
        # Another sweeper chooses its jobs as it goes.
        return f"Job {name}"
    number = list(plan).index(name) + 1
    return f"Job {number} of {len(plan)}: {short_lines(plan)[name]}"


def standing(sweep_dir: Path, name: str) -> str:
    """How far the sweep is after a job: its number, the best score so far, the time left.

    Of a sweep over models with different objectives, the best score of each is given.
    """
    plan = read_plan(sweep_dir)
    if name not in plan:
        return "Job ended"
    results = {job: read_results(sweep_dir / job) or {} for job in plan}
    ended = [job for job in plan if results[job].get("status") in ENDED]
    message = f"Job {list(plan).index(name) + 1} of {len(plan)} ended"
    best: dict[tuple[str, str], tuple[float, str]] = {}
    lines = short_lines(plan)
    for job in ended:
        if results[job]["status"] != "completed":
            continue
        objective, value = selection_score(results[job])
        measure, cost = (objective.measure, objective.direction), objective.cost(value)
        if measure not in best or cost < best[measure][0]:
            best[measure] = cost, f"{objective.name} {format_loss(value)} ({lines[job]})"
    if best:
        message += f"; best so far: {', '.join(words for _, words in best.values())}"
    minutes = minutes_left(sweep_dir, plan, ended, plan[name].requested)
    if minutes is None:
        return message
    if minutes < 1:
        return f"{message}; less than a minute left"
    return f"{message}; about {minutes:.0f} min left"


def minutes_left(
    sweep_dir: Path, plan: Mapping[str, Planned], ended: list[str], start: float
) -> float | None:
    """The time left at the pace since `start`; None where nothing tells it or nothing is left.

    The pace is that of the epochs done, with any number of workers.
    """
    done = 0.0
    for job in ended:
        if (sweep_dir / job / "results.json").stat().st_mtime >= start:
            done += epochs(plan[job])
    left = sum(
        epochs(job) for name, job in plan.items() if name not in ended and job.requested >= start
    )
    return (time.time() - start) / done * left / 60 if done and left else None


def epochs(job: Planned) -> int:
    """The epochs of a job relative to others: equal for all, unless they are swept."""
    match = re.search(r"(?:^| )trainer\.max_epochs=(\d+)", " ".join(job.lines))
    return int(match[1]) if match else 1
