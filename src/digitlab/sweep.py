"""A sweep on disk: which jobs it has, how far they are, what is left. It must not import torch: a dry run asks it."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from digitlab.cli import Command, Job
from digitlab.config.validation import to_plain
from digitlab.formatting import format_loss
from digitlab.runs.files import directory_lock, read_json, resolve_path, write_json
from digitlab.runs.provenance import code_version, describe_other_code, make_run_id
from digitlab.runs.results import find_conflict, read_results, run_state, selection_score, started_since

ONLY = "(the only job)"
PLAN = "sweep.json"  # in the sweep's directory; a job's own directory is named by its run id
# What a dry run says of a job in each state.
NEXT = {
    "completed": "skip",
    "new": "run",
    "interrupted": "resume",
    "failed": "try again",
    "diverged": "try again",
    "damaged": "do again",
    "running": "leave to the process that is at it",
    "foreign": "refuse",
}


class Planned(NamedTuple):
    """A job of a sweep, as the last command that asked for it left it in the plan."""

    run_id: str
    overrides: str  # what it alone was told on the command line
    epochs: int
    asked: float = 0.0  # seconds since the epoch
    since: float = 0.0  # what is older is to be done again (force=true), by the clock of the file system; 0: nothing
    origin: str = ""  # the code and the folder of data that it was asked of
    folder: str = ""  # where the command was given: relative paths begin there
    root: str = ""  # data.root, which the environment there may have named


def plan(jobs: Sequence[Job]) -> list[Planned]:
    """The jobs by their ids, each once, with the words in which they differ."""
    common = set.intersection(*({*job.overrides} for job in jobs)) if jobs else set()
    planned = [
        Planned(
            make_run_id(to_plain(job.cfg)),
            " ".join(word for word in job.overrides if word not in common),
            job.cfg.trainer.max_epochs,
        )
        for job in jobs
    ]
    return list({job.run_id: job for job in planned}.values())


def merged(asked: Sequence[Job], jobs: Sequence[Planned]) -> str:
    """A sentence for a command that asks for the same configuration in several words."""
    return f"{len(asked)} jobs were asked for, with {len(jobs)} different configurations; each is done once"


def begin(directory: Path, jobs: Sequence[Planned], *, force: bool = False, root: str = "") -> list[Planned]:
    """Add a command's jobs to the plan in the sweep's directory, for its jobs and its report; returns them as they
    stand there.

    Under `force` what was done before now is done again, but for what an earlier such command, cut short, or another
    process has done already with the same code and data.
    """
    directory.mkdir(parents=True, exist_ok=True)
    asked, origin, folder = time.time(), origin_of(root), str(Path.cwd())
    with directory_lock(directory, wait=True):
        old = {job.run_id: job for job in read_plan(directory)}
        new = {
            job.run_id: job._replace(
                asked=asked,
                since=forced_since(old, job.run_id, origin),
                origin=origin,
                folder=folder,
                root=root,
            )
            for job in jobs
        }
        _write(directory, old | new)
        if force:
            now = (directory / PLAN).stat().st_mtime
            new = {name: job._replace(since=job.since or now) for name, job in new.items()}
            _write(directory, old | new)
    return [*new.values()]


def origin_of(root: str) -> str:
    """The code that runs and the folder of data, in words that tell them from others."""
    return f"{code_version()['digest']} {resolve_path(root)}"


def forced_since(plan: Mapping[str, Planned], run_id: str, origin: str) -> float:
    """Since when force=true has been doing a job again with this code and data; 0 where no such command is left."""
    job = plan.get(run_id)
    return job.since if job and job.origin == origin else 0.0


def end(directory: Path, jobs: Sequence[Planned]) -> None:
    """Note that these jobs had their turn, but for those that another command has asked for since."""
    with directory_lock(directory, wait=True):
        plan = {job.run_id: job for job in read_plan(directory)}
        done = {job.run_id: job._replace(since=0.0) for job in jobs if plan.get(job.run_id) == job}
        _write(directory, plan | done)


def _write(directory: Path, plan: Mapping[str, Planned]) -> None:
    write_json(directory / PLAN, {"jobs": [job._asdict() for job in plan.values()]})


def read_plan(directory: Path) -> list[Planned]:
    """The jobs of all commands that were given for a sweep's directory; none where there is no plan."""
    try:
        content: Any = read_json(directory / PLAN)
        jobs = [Planned(**job) for job in content["jobs"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    kinds = Planned.__annotations__.values()  # this program writes no others
    return [job for job in jobs if all(map(isinstance, job, kinds))]


def planned(job: Path) -> Planned | None:
    """What the plan beside a job's directory says of it."""
    return next((each for each in read_plan(job.parent) if each.run_id == job.name), None)


def dry_run(command: Command) -> str:
    """A line a job: what the command would do with it, and how it stands now."""
    directory, jobs = command.directory, plan(command.jobs)
    assert directory is not None
    folders = [directory / job.run_id if command.multirun else directory for job in jobs]
    states = [stands(folder, job.run_id) for folder, job in zip(folders, jobs, strict=True)]
    root, force = command.jobs[0].cfg.data.root, command.jobs[0].cfg.force
    old, origin = {job.run_id: job for job in read_plan(directory)}, origin_of(root)
    acts = []
    for job, folder, now in zip(jobs, folders, states, strict=True):
        done = started_since(folder, forced_since(old, job.run_id, origin))
        again = force and now in ("completed", "interrupted") and not done
        acts.append("do again" if again else NEXT[now])
    lines = []
    for job, folder, act, now in zip(jobs, folders, acts, states, strict=True):
        other = other_origin(folder, root) if now == "completed" else ""
        lines.append(f"{job.run_id}  {act:10} {now:12} {job.overrides or ONLY}{other and f'  (made {other})'}")
    count = ", ".join(f"{n} to {what}" for what, n in Counter(acts).items())
    if len(jobs) < len(command.jobs):
        lines.append(merged(command.jobs, jobs))
    typed = command.multirun or directory.exists() or any("hydra.run.dir=" in word for word in command.words)
    place = directory if typed else f"a new folder of {directory.parent}"  # named by the time that it is made
    return "\n".join([*lines, f"{len(jobs)} job{'s' * (len(jobs) != 1)} in {place}: {count}"])


def stands(folder: Path, run_id: str) -> str:
    """The state of a job's directory; `foreign` also where another configuration's run is in it."""
    return "foreign" if find_conflict(folder, run_id) else run_state(folder)


def other_origin(folder: Path, root: str) -> str:
    """By what other code and from what other folder of data a finished run was made, in words; empty where by the same.

    Without a look at the data: that takes a second.
    """
    results = read_results(folder) or {}
    data = results.get("config", {}).get("data")
    read = data.get("root") if isinstance(data, dict) else None
    elsewhere = not isinstance(read, str) or resolve_path(read) != resolve_path(root)
    return ", ".join(filter(None, (describe_other_code(results), f"of data.root={read}" if elsewhere else "")))


def wait_for_others(directory: Path, jobs: Sequence[Planned]) -> bool:
    """Wait while other processes work on jobs of this sweep. Returns whether one of them left its job unfinished."""
    theirs = [job.run_id for job in jobs if run_state(directory / job.run_id) == "running"]
    if theirs:
        print(f"Another process is at {len(theirs)} of the jobs; waiting for it")
    for name in theirs:
        while (now := run_state(directory / name)) == "running":
            time.sleep(0.5)
        if now in ("interrupted", "new", "damaged"):
            return True
    return False


def opening(directory: Path, this: str) -> str:
    """Which job of the sweep begins, by its id."""
    jobs = read_plan(directory)
    for n, job in enumerate(jobs, 1):
        if job.run_id == this:
            return f"Job {n} of {len(jobs)}: {job.overrides or ONLY}"
    return f"A job: {this}"  # of a sweeper that makes its jobs as it goes


def progress(directory: Path, this: str) -> str:
    """How far the sweep is after the job with the id `this`: job k of n, the best so far, the time left."""
    jobs = read_plan(directory)
    number = {job.run_id: n for n, job in enumerate(jobs, 1)}
    if this not in number:
        return "A job ended"
    found = {job.run_id: read_results(directory / job.run_id) or {} for job in jobs}
    done = [job for job in jobs if found[job.run_id].get("status") in ("completed", "failed", "diverged")]
    told = f"Job {number[this]} of {len(jobs)} ended"
    scores = {
        job: selection_score(found[job.run_id]["metrics"]) for job in done if found[job.run_id]["status"] == "completed"
    }
    if scores:
        best = min(scores, key=lambda job: scores[job][1])
        name, loss = scores[best]
        told += f"; best so far: {name} {format_loss(loss)}"
        told += f" ({best.overrides})" if best.overrides else ""
    # Epochs done since the start tell the pace, with however many workers and however unequal the jobs.
    began = jobs[number[this] - 1].asked
    fresh = sum(job.epochs for job in done if (directory / job.run_id / "results.json").stat().st_mtime >= began)
    left = sum(job.epochs for job in jobs if job not in done and job.asked >= began)
    if fresh and left:
        minutes = (time.time() - began) / fresh * left / 60
        told += f"; about {minutes:.0f} min left" if minutes >= 1 else "; less than a minute left"
    return told
