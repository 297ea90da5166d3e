"""A sweep on a terminal: one table of its jobs, drawn again while one of them runs in this process.

The table is drawn when a job starts and erased when it ends, so that each job leaves the terminal
as it was. In between, the job's lines go to train.log alone, except for warnings, errors and what
is printed: they appear above the table. Imports rich only to draw.
"""

import io
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from digitlab.formatting import format_loss
from digitlab.report import progress
from digitlab.report.live import find_status
from digitlab.report.terminal import crop, has_unicode
from digitlab.runtime import signals
from digitlab.runtime.watching import Training, watch
from hydra_plugins.resumable_sweeper.jobs import Planned, short_lines

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

REFRESHES_PER_SECOND = 2
STYLES = {
    "running": "bold cyan",
    "completed": "green",
    "failed": "red",
    "diverged": "red",
    "interrupted": "yellow",
    "pruned": "dim",
    "not started": "dim",
}
# Lines of the table's frame and of the progress below it, and one that stays free.
FRAME_LINES = 8
# Between two columns.
GAP = 2
# The width of the other columns than the settings, with the gaps between them.
OTHER_COLUMNS = 48
# Before this share of the first job the time left would be a guess.
TELLING_SHARE = 0.05


def is_possible() -> bool:
    """Whether stdout is a terminal on which this process can draw.

    Of several sweeps that a shell runs in the background none can: they share the terminal.
    """
    if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") in ("dumb", "unknown"):
        return False
    if not has_unicode():
        return False
    try:
        return os.tcgetpgrp(sys.stdout.fileno()) == os.getpgrp()
    except OSError:
        # It is not the terminal that controls this process.
        return True


@contextmanager
def show_table(sweep_dir: Path, job: str) -> Iterator[None]:
    """Show the table of a sweep while the block runs one of its jobs.

    If a signal ends the block, the table stays on the terminal.
    """
    from rich.console import Console
    from rich.live import Live

    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    with watch() as training:
        table = JobTable(sweep_dir, job, training)
        live = Live(
            console=console,
            get_renderable=lambda: table.render(console),
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        try:
            with signals.deferred(), suppress(OSError):
                live.start(refresh=True)
            with print_above(console, f"Job {table.number}"):
                yield
        except (KeyboardInterrupt, SystemExit):
            live.transient = False
            table.statuses[job] = "interrupted"
            raise
        finally:
            # A second Ctrl-C must not leave the terminal without a cursor. A terminal that is gone
            # must not make the job a failure.
            with signals.deferred(), suppress(OSError):
                live.stop()


class JobTable:
    """The rows of a sweep's table, of which that of the running job changes."""

    def __init__(self, sweep_dir: Path, job: str, training: Training) -> None:
        self.job, self.training = job, training
        self.plan = progress.read_jobs(sweep_dir)
        self.number = list(self.plan).index(job) + 1
        self.states = {name: progress.read_standing(sweep_dir / name) for name in self.plan}
        self.statuses = {}
        for name, state in self.states.items():
            self.statuses[name] = find_status(sweep_dir / name, state)
        self.statuses[job] = "running"
        state, self.earlier_seconds = self.states[job], 0.0
        if state is not None and state.status not in progress.ENDED:
            # It continues.
            self.earlier_seconds = state.seconds
        self.start = time.monotonic()

    def render(self, console: "Console") -> "RenderableType":
        """The table and the progress below it, for the size that the terminal has now."""
        from rich.console import Group

        width = console.width
        return Group(self.make_table(console), self.make_progress(width), *self.list_best(width))

    def make_table(self, console: "Console") -> "Table":
        """A row a job, as many as the terminal has room for."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        settings, cells = lay_out(self.plan, console.width - OTHER_COLUMNS)
        names = list(self.plan)
        shown = select_rows(len(names), self.number - 1, max(3, console.height - FRAME_LINES))
        table = Table(
            box=box.SIMPLE_HEAD, show_edge=False, padding=(0, GAP - 1, 0, 0), caption_justify="left"
        )
        table.add_column("job", justify="right", no_wrap=True)
        for name in settings:
            table.add_column(Text(name), no_wrap=True)
        table.add_column("status", no_wrap=True)
        for name in ("epoch", self.find_measure(), "time"):
            table.add_column(Text(name), justify="right", no_wrap=True)
        for index in shown:
            name = names[index]
            status = self.statuses[name]
            numbers = map(Text, self.describe(name))
            word = Text(status, STYLES.get(status, ""))
            table.add_row(Text(str(index + 1)), *map(Text, cells[index]), word, *numbers)
        if len(shown) < len(names):
            table.caption = Text(f"jobs {shown[0] + 1} to {shown[-1] + 1} of {len(names)}")
        return table

    def find_measure(self) -> str:
        """The metric of the column, if all jobs have the same one."""
        names = {
            state.objective.name for state in self.states.values() if state and state.objective
        }
        names |= {self.training.measure} - {""}
        return names.pop() if len(names) == 1 else "objective"

    def describe(self, name: str) -> tuple[str, str, str]:
        """The epoch, the objective and the time of a job."""
        state = self.states[name]
        if name == self.job:
            epoch, value = f"{self.training.epoch}/{self.training.epochs}", self.training.value
            if not self.training.epochs:
                epoch = ""
            seconds = self.earlier_seconds + time.monotonic() - self.start
        elif state is None:
            return "", "", ""
        else:
            epoch, value, seconds = str(state.epochs), state.score, state.seconds
        return epoch, "" if value is None else format_loss(value), format_time(seconds)

    def make_progress(self, width: int) -> "Table":
        """How many jobs have ended, a bar, and the time left."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        ended = sum(status in progress.ENDED for status in self.statuses.values())
        failed = sum(status in ("failed", "diverged") for status in self.statuses.values())
        words = f"{ended} of {len(self.plan)} jobs"
        if failed:
            words += f", {failed} failed"
        done = total = 0.0
        for name, planned in self.plan.items():
            share = float(self.statuses[name] in progress.ENDED)
            if name == self.job:
                share = self.training.share
            done += share * progress.epochs(planned)
            total += progress.epochs(planned)
        shares = {self.job: self.training.share}
        if self.training.share < TELLING_SHARE:
            shares = {}
        start = self.plan[self.job].requested
        left = progress.describe_time_left(self.plan, self.states, start, shares)
        line = Table.grid(padding=(0, 2))
        for _ in range(3):
            line.add_column(no_wrap=True)
        bar = ProgressBar(total, done, max(4, min(20, width - 52)), complete_style="cyan")
        line.add_row(Text(words), bar, Text(left))
        return line

    def list_best(self, width: int) -> "list[Text]":
        """The best job so far, of each objective."""
        from rich.text import Text

        lines, best = short_lines(self.plan), []
        for name, objective, score in progress.find_best(self.states):
            words = f"best {objective.name} {format_loss(score)}: {lines[name]}"
            best.append(Text(crop(words, width)))
        return best


def lay_out(plan: Mapping[str, Planned], width: int) -> tuple[list[str], list[list[str]]]:
    """The columns of the settings, and their texts for each job.

    A column for each key, if need be with the last part of its name; if that is too wide as well, a
    column with all overrides, shortened.
    """
    rows = []
    for line in short_lines(plan).values():
        rows.append(dict(word.partition("=")[::2] for word in line.split(" ")))
    keys = list(dict.fromkeys(key for row in rows for key in row))
    texts = [[row.get(key, "") for key in keys] for row in rows]
    last_parts = [key.rpartition(".")[2] for key in keys]
    for names in (keys, last_parts):
        widths = [max(map(len, column)) for column in zip(names, *texts, strict=True)]
        if len(set(names)) == len(names) and sum(widths) + GAP * len(widths) <= width:
            return names, texts
    lines = []
    for row in rows:
        line = " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in row.items())
        lines.append([crop(line, max(8, width - GAP))])
    return ["settings"], lines


def select_rows(total: int, running: int, room: int) -> range:
    """The rows that are shown: those around the running one, most of them before it."""
    start = min(max(0, running - room * 2 // 3), max(0, total - room))
    return range(start, min(total, start + room))


def format_time(seconds: float) -> str:
    """Format a duration: 1.9 s, 2:05, 1:02:05."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# -- what else the job writes ------------------------------------------------------------------


@contextmanager
def print_above(console: "Console", job: str) -> Iterator[None]:
    """Print warnings and errors of a job, and what it prints itself, above the table."""
    root, replaced = logging.getLogger(), list[logging.Handler]()
    for handler in root.handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream in (
            sys.stdout,
            sys.stderr,
        ):
            replaced.append(handler)
    above = LogAbove(console, job, max((handler.level for handler in replaced), default=0))
    out, errors = LinesAbove(console, sys.stdout), LinesAbove(console, sys.stderr)
    for handler in replaced:
        root.removeHandler(handler)
    if replaced:
        root.addHandler(above)
    try:
        # A file that takes the errors keeps them.
        with redirect_stdout(out), redirect_stderr(errors if sys.stderr.isatty() else sys.stderr):
            yield
    finally:
        out.finish()
        errors.finish()
        root.removeHandler(above)
        for handler in replaced:
            root.addHandler(handler)


class LogAbove(logging.Handler):
    """Prints the warnings and errors of a job, and which job it is."""

    def __init__(self, console: "Console", job: str, level: int) -> None:
        super().__init__(max(logging.WARNING, level))
        self.console, self.job = console, job

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message in colour."""
        from rich.text import Text

        style = "red" if record.levelno >= logging.ERROR else "yellow"
        try:
            self.console.print(Text(f"{self.job}: {record.getMessage()}", style))
        except Exception:
            self.handleError(record)


class LinesAbove(io.TextIOBase):
    """Prints lines when they are complete; of a progress bar, the last state."""

    def __init__(self, console: "Console", stream: TextIO) -> None:
        self.console, self.stream, self.part = console, stream, ""

    def fileno(self) -> int:
        """The file that processes of the job inherit."""
        return self.stream.fileno()

    def writable(self) -> bool:
        """True."""
        return True

    def write(self, text: str) -> int:
        """Print the lines that end in this text."""
        from rich.text import Text

        *lines, self.part = (self.part + text).split("\n")
        for line in lines:
            self.console.print(Text.from_ansi(line.rstrip("\r").rpartition("\r")[2]))
        return len(text)

    def finish(self) -> None:
        """Print a last line that has no end."""
        if self.part:
            self.write("\n")
