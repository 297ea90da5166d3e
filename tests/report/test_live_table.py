"""A sweep on a terminal: one table of its jobs, above it warnings and what the jobs print."""

import fcntl
import io
import json
import logging
import os
import pty
import re
import signal
import struct
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from digitlab.report import live_table
from digitlab.report.live_table import JobTable
from digitlab.runtime.watching import Training, watch, watched

from .. import forked
from ..conftest import ROOT, find_jobs, load_results, plan_jobs
from ..training.test_experiment import KMEANS

CONTROL = re.compile(r"\x1b\[[?0-9;]*[A-Za-z]")


class Terminal:
    """A pseudo-terminal of 24 lines of 80 columns, and all that was written to it."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.path = Path(os.ttyname(self.slave))
        self.content = ""
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        try:
            while data := os.read(self.master, 65536):
                self.content += data.decode(errors="replace")
        except OSError:
            # Nobody has it open any more.
            pass

    def wait_for(self, pattern: str, seconds: float) -> None:
        """Wait until a text was written after the control sequences were removed."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.text) and time.monotonic() < deadline:
            time.sleep(0.05)

    @property
    def text(self) -> str:
        """The content without control sequences; a line may occur many times."""
        return CONTROL.sub("", self.content).replace("\r", "\n")

    def close(self) -> None:
        os.close(self.slave)
        self.reader.join(5)
        os.close(self.master)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


def run_on_terminal(command: list[str], folder: Path, path: Path, cache: Path) -> None:
    """Run train.py on a terminal; the target of a forked process."""
    os.environ["TERM"] = "xterm-256color"
    for name in ("COLUMNS", "LINES", "NO_COLOR"):
        os.environ.pop(name, None)
    forked.run_script(ROOT / "train.py", command, folder, path, path, cache=cache)


@pytest.mark.slow
def test_a_sweep_on_a_terminal_is_a_table(
    forked_process: Any,
    classifiers: Path,
    terminal: Terminal,
    overrides: list[str],
    tmp_path: Path,
) -> None:
    """Of three jobs one completes with a warning, one diverges, Ctrl-C interrupts the third.

    No line is wider than the terminal, no epoch has a line, and the cursor is visible at the end.
    """
    command = ["-m", *KMEANS, *overrides, "optimizer.lr=1,1e30,2", "trainer.max_epochs=80"]
    command += ["data.batch_size=1000", "hydra.sweep.dir=sweep"]
    process = forked_process(
        target=run_on_terminal, args=(command, tmp_path, terminal.path, classifiers)
    )
    process.start()
    terminal.wait_for(r"\b2 +running +\d+/80 +0\.", seconds=200)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    process.kill()
    assert process.exitcode == 130
    terminal.wait_for("Interrupted; the same", seconds=10)
    text = terminal.text
    sweep_dir = str(tmp_path / "sweep")
    assert max(len(line) for line in text.splitlines() if sweep_dir not in line) <= 80
    assert "Job 1: WARNING: data.batch_size=1000 is more than the" in text
    assert re.search("Job 2: Diverged: (train|val)/loss is", text)
    assert re.search(r"1 +1 +completed +80 +0\.\d+ +\d", text)
    assert re.search(r"2 +1e\+30 +diverged", text)
    assert "2 of 3 jobs, 1 failed" in text
    assert re.search(r"3 +2 +interrupted +\d+/80", text), "the table stays"
    assert f"Interrupted; the same command continues {sweep_dir}" in text
    assert not re.search(r"epoch +\d+/80  train/loss", text)
    assert terminal.content.count("\x1b[?25l") == 3, "once a job"
    assert terminal.content.rindex("\x1b[?25h") > terminal.content.rindex("\x1b[?25l")
    for run in find_jobs(Path(sweep_dir)).values():
        if load_results(run)["status"] != "diverged":
            assert "train/loss" in (run / "train.log").read_text()


def draw(table: JobTable, width: int, height: int) -> list[str]:
    console = Console(width=width, height=height, record=True, file=io.StringIO())
    console.print(table.render(console))
    return console.export_text().splitlines()


def write_results(run: Path, status: str, loss: float | None) -> None:
    metrics = {} if loss is None else {"val/loss": loss, "train/loss": loss, "test/loss": loss}
    content = {"run_id": run.name, "status": status, "seed": 0, "config": {}, "metrics": metrics}
    run.mkdir()
    (run / "results.json").write_text(json.dumps(content | {"epochs": 2, "seconds": 61}))


@pytest.mark.parametrize(("width", "is_narrow"), [(100, False), (71, False), (60, True)])
def test_the_table_fits_the_width_and_the_height(
    width: int, is_narrow: bool, tmp_path: Path
) -> None:
    """Forty jobs on 20 lines: the running one is among those shown, with its part of the epochs.

    Settings have a column each, or a shortened one for all.
    """
    lines = {f"j{n:02}": f"optimizer.lr={n} model.channels=[8,{n}]" for n in range(40)}
    plan_jobs(tmp_path, **lines)
    write_results(tmp_path / "j00", "completed", 0.0523)
    write_results(tmp_path / "j28", "failed", None)
    training = Training(3, 10, 3, 10, "val/loss", 0.0612)
    shown = draw(JobTable(tmp_path, "j29", training), width, 20)
    assert len(shown) < 20
    assert max(map(len, shown)) <= width
    text = "\n".join(shown)
    settings = r"lr=29 \S+" if is_narrow else r"29 +\[8,29\]"
    assert re.search(rf"30 +{settings} +running +3/10 +0\.0612 +0\.\d s", text)
    assert re.search(r"29 .+ failed +2 +1:01", text)
    assert "jobs 22 to 33 of 40" in text
    assert "2 of 40 jobs, 1 failed " in text
    assert "best val/loss 0.0523: optimizer.lr=0" in text
    assert ("settings" in shown[0]) == is_narrow


def test_what_a_job_writes_appears_above_the_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Warnings, errors and printed lines; of a progress bar the last state; no INFO."""
    root, log = logging.getLogger(), logging.getLogger("digitlab.tested")
    log.setLevel(logging.INFO)
    console = Console(file=sys.stdout, width=200)
    handler = logging.StreamHandler(sys.stdout)
    monkeypatch.setattr(root, "handlers", [handler])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with live_table.print_above(console, "Job 2"):
        log.info("epoch 1/2")
        log.warning("WARNING: it is dark [8,16]")
        log.error("Failed: no image")
        print("mine")
        print("10 %\r", end="", file=sys.stderr)
        print("100 %\nrest", end="", file=sys.stderr)
        handler.flush()
    assert root.handlers == [handler]
    expected = "Job 2: WARNING: it is dark [8,16]\nJob 2: Failed: no image\nmine\n100 %\nrest\n"
    assert capsys.readouterr() == (expected, "")


def test_only_a_terminal_that_understands_gets_a_table(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a pipe or a file, nor with TERM=dumb."""
    monkeypatch.setenv("TERM", "xterm")
    assert not live_table.is_possible(), "pytest's capture"
    with terminal.path.open("w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert live_table.is_possible()
        monkeypatch.setenv("TERM", "dumb")
        assert not live_table.is_possible()
    monkeypatch.undo()
    with watch() as training:
        assert watched() is training
    assert watched() is None
