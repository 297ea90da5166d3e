"""Small Hydra applications, made on the spot and run as processes of their own.

These tests know no other application. Run them with any Python
that has Hydra, from the root of the repository:

    python -m pytest -c /dev/null --rootdir . --confcutdir tests/resumable_sweeper
        -p no:cacheprovider tests/resumable_sweeper
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

import hydra_plugins.resumable_sweeper

# A job appends a line to done.txt at its end only, so a line is a job that ran to its end.
APP = """
import os, time
from pathlib import Path
import hydra

@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg):
    time.sleep(cfg.sleep)
    if cfg.seed == cfg.fail:
        raise RuntimeError("no luck")
    line = f"{cfg.lr} {cfg.seed}\\n"
    file = os.open(os.environ["DONE"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, line.encode())
    os.close(file)

if __name__ == "__main__":
    main()
"""
CONFIG = """
defaults:
  - _self_
  - override hydra/sweeper: resumable
lr: 0.1
seed: 0
fail: null
sleep: 0
extra: 1
hydra:
  sweep: {dir: out}
"""
SOURCE = Path(hydra_plugins.resumable_sweeper.__file__).parents[2]
SECONDS = 120


def needs(launcher: str) -> pytest.MarkDecorator:
    """Skip a test where a launcher's plugin is not installed."""
    missing = find_spec(f"hydra_plugins.hydra_{launcher}_launcher") is None
    return pytest.mark.skipif(missing, reason=f"hydra-{launcher}-launcher is not installed")


def killed(process: subprocess.Popen[str]) -> None:
    """Kill a process and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


@dataclass
class Application:
    """A Hydra application in a folder of its own."""

    folder: Path

    def write(self, name: str, text: str) -> None:
        """Write one of its files."""
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start a multirun in a process group of its own."""
        path = os.pathsep.join([str(SOURCE), str(self.folder)])
        variables = {"PYTHONPATH": path, "PYTHONWARNINGS": "ignore", "DONE": str(self.done)}
        return subprocess.Popen(
            [sys.executable, "app.py", "--multirun", *arguments],
            cwd=self.folder,
            env=os.environ | variables | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(
        self, *arguments: str, code: int = 0, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a multirun, which ends with an exit code."""
        process = self.start(*arguments, **environment)
        try:
            out, err = process.communicate(timeout=SECONDS)
        finally:
            killed(process)
        assert process.returncode == code, f"{process.returncode}\n{out}\n{err}"
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    @property
    def done(self) -> Path:
        """The file to which each job appends a line at its end."""
        return self.folder / "done.txt"

    def lines(self) -> list[str]:
        """What the jobs wrote at their ends, sorted."""
        return sorted(self.done.read_text().splitlines()) if self.done.exists() else []

    def jobs(self, sweep: str = "out") -> list[str]:
        """The names of the directories of jobs."""
        return sorted(path.parent.name for path in (self.folder / sweep).glob("*/.job.json"))


@pytest.fixture
def app(tmp_path: Path) -> Application:
    """An application that sleeps, perhaps fails, and notes that it came to its end."""
    application = Application(tmp_path)
    application.write("app.py", APP)
    application.write("conf/config.yaml", CONFIG)
    return application
