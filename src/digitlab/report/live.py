"""The page of a sweep that runs: how far it is, what runs, and the jobs so far.

It is written when a job starts and when one ends, in the process that runs the job. The report
replaces it at the end. It needs no pandas, and its size is limited, so that it costs a job little.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from digitlab.formatting import format_loss
from digitlab.report import progress, rendering
from digitlab.report.progress import Standing
from digitlab.report.rendering import Cell, Column, Row, make_link, shorten
from digitlab.runs.files import atomic_write
from digitlab.runs.results import is_running
from hydra_plugins.resumable_sweeper.jobs import Planned, short_lines

log = logging.getLogger(__name__)

MAX_ROWS = 200
MAX_RUNNING = 32
COLUMNS = [
    Column("status", "status"),
    Column("objective", "objective", True),
    Column("settings", "settings"),
    Column("seconds", "seconds", True),
    Column("run", "run"),
    Column("remark", "remark"),
]
# The order of the rows.
ORDER = (
    "running",
    "failed",
    "diverged",
    "completed",
    "debug",
    "pruned",
    "interrupted",
    "not started",
)


def write_page(sweep_dir: Path, started: str = "", *, is_interrupted: bool = False) -> None:
    """Write report/report.html of a sweep that runs.

    A page that cannot be written, as on a full disk, must not make a job a failure.

    Args:
        sweep_dir: The directory of the sweep.
        started: The job that this process is about to run.
        is_interrupted: Whether a signal ends this process.
    """
    try:
        plan = progress.read_jobs(sweep_dir)
        # Another sweeper makes no plan.
        if plan:
            out = sweep_dir / "report"
            page = render_page(sweep_dir, plan, out, started, is_interrupted)
            with atomic_write(out / "report.html") as part:
                part.write_bytes(page)
    except Exception as error:
        log.debug("The page of the sweep was not written: %s", error, exc_info=True)


@contextmanager
def show_on_page(sweep_dir: Path, job: str) -> Iterator[None]:
    """Write the page of a sweep when a job starts, and when it has ended."""
    write_page(sweep_dir, started=job)
    is_interrupted = True
    try:
        yield
        is_interrupted = False
    except Exception:
        is_interrupted = False
        raise
    finally:
        write_page(sweep_dir, is_interrupted=is_interrupted)


def render_page(
    sweep_dir: Path, plan: Mapping[str, Planned], out: Path, started: str, is_interrupted: bool
) -> bytes:
    """Render the page; its links are relative to the directory `out`."""
    states = {job: progress.read_standing(sweep_dir / job) for job in plan}
    lines = short_lines(plan)
    statuses = {}
    for job, state in states.items():
        statuses[job] = "running" if job == started else find_status(sweep_dir / job, state)
    ended = sum(status in progress.ENDED for status in statuses.values())
    running = [lines[job] for job, status in statuses.items() if status == "running"]
    reloads = bool(running) or not is_interrupted
    shown = sort_jobs(states, statuses)
    left = progress.describe_time_left(plan, states, max(job.requested for job in plan.values()))
    best = []
    for job, objective, score in progress.find_best(states):
        title = f"Best {objective.name} so far"
        best.append({"title": title, "value": format_loss(score), "setting": shorten(lines[job])})
    advice = "The page reloads itself; the whole report replaces it at the end."
    if not reloads:
        advice = (
            "Interrupted: the same command continues the sweep, and"
            " scripts/report.py writes the report of what there is."
        )
    return rendering.render(
        "live.html",
        name=sweep_dir.name,
        folder=sweep_dir,
        written=datetime.now().astimezone().strftime("%H:%M:%S"),
        moment=time.time(),
        reloads=reloads,
        state="Running" if reloads else "Interrupted",
        ended=ended,
        total=len(plan),
        left=left if reloads else "",
        best=best,
        statuses=dict(Counter(statuses.values()).most_common()),
        running=[shorten(line) for line in running[:MAX_RUNNING]],
        advice=advice,
        columns=COLUMNS,
        rows=[
            make_row(sweep_dir / job, states[job], statuses[job], lines[job], out)
            for job in shown[:MAX_ROWS]
        ],
        more=max(0, len(shown) - MAX_ROWS),
    )


def find_status(run: Path, state: Standing | None) -> str:
    """The status of a job; results.json of a running one says `interrupted`."""
    if state is not None and state.status != "interrupted":
        return state.status
    if is_running(run):
        return "running"
    return "not started" if state is None else state.status


def sort_jobs(states: Mapping[str, Standing | None], statuses: Mapping[str, str]) -> list[str]:
    """Sort the jobs: what runs, what failed, then the completed ones, best first."""

    def key(job: str) -> tuple[int, float]:
        state, cost = states[job], 0.0
        if state is not None and state.objective is not None:
            cost = float(state.objective.cost(state.score))
        return ORDER.index(statuses[job]) if statuses[job] in ORDER else len(ORDER), cost

    return sorted(states, key=key)


def make_row(run: Path, state: Standing | None, status: str, line: str, out: Path) -> Row:
    """Make the row of a job."""
    score = seconds = Cell("")
    if state is not None and state.score is not None:
        score = Cell(format_loss(state.score), state.score, "", "number")
    if state is not None and status != "running":
        seconds = Cell(f"{state.seconds:.1f}", state.seconds, "", "number")
    link = make_link(run, out) if state is not None else ""
    cells = [
        Cell(status, kind="status"),
        score,
        Cell(shorten(line), kind="text"),
        seconds,
        Cell(run.name, link=link),
        Cell(shorten(state.error if state is not None else "", 300), kind="note"),
    ]
    return Row(status, "", cells)
