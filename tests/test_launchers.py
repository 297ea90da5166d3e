"""Sweeps where jobs run elsewhere: requeued by a scheduler, on a cluster, ended with their driver."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from digitlab.runs.results import read_results, run_state

from .conftest import ROOT, results
from .test_app import jobs_of
from .training.test_experiment import KMEANS, assert_same

pytestmark = pytest.mark.slow


def begin(command: list[str], folder: Path, **variables: str) -> "subprocess.Popen[str]":
    """Start `python train.py ...` in a folder; its output goes to the files out and err there."""
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *command],
            cwd=folder,
            env=os.environ | variables,
            stdout=out,
            stderr=err,
            text=True,
        )


def wait_until(happened: Callable[[], bool], seconds: float = 200) -> None:
    """Wait for something; fail where it does not happen."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def wait_for_epochs(sweep: Path, more_than: int = 0, jobs: int = 1) -> list[Path]:
    """Wait until so many jobs of a sweep have more than so many epochs behind them; returns their directories."""

    def found() -> list[Path]:
        return [run for run in jobs_of(sweep).values() if epochs(run) > more_than]

    wait_until(lambda: len(found()) >= jobs)
    return found()


def tasks(driver: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The processes in which submitit runs the jobs of a sweep."""
    children = psutil.Process(driver.pid).children(recursive=True)
    return [child for child in children if "submitit.core._submit" in child.cmdline()]


SUBMITIT = ["hydra/launcher=submitit_local", "hydra.sweep.dir=sweep"]


def test_a_job_that_submitit_requeues_goes_on_bitwise(words: list[str], tmp_path: Path) -> None:
    """Preempted while it trains, each time it was begun: it ends as an undisturbed one, in one sweep."""
    command = ["-m", *KMEANS, *words, "seed=0", "trainer.max_epochs=200"]
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    assert begin([*command, "hydra.sweep.dir=sweep"], tmp_path / "whole").wait(200) == 0
    driver = begin([*command, *SUBMITIT], tmp_path / "cut")
    sweep, reached, times = tmp_path / "cut" / "sweep", 0, 2
    for _ in range(times):
        (run,) = wait_for_epochs(sweep, reached)
        (task,) = tasks(driver)
        task.send_signal(signal.SIGUSR2)
        task.wait(60)
        reached = epochs(run)
    assert results(run)["status"] == "interrupted"
    assert driver.wait(200) == 0, (tmp_path / "cut" / "err").read_text()
    (expected,) = jobs_of(tmp_path / "whole" / "sweep").values()
    assert_same(expected, run)
    log = (run / "train.log").read_text()
    assert log.count("Resuming from") == times, log
    assert "Traceback" not in log


def epochs(run: Path) -> int:
    """How many epochs a run has behind it."""
    return int((read_results(run) or {}).get("epochs", 0))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_jobs_of_submitit_local_end_with_their_driver(
    number: int, words: list[str], tmp_path: Path
) -> None:
    """Whether it is told to end or hears Ctrl-C: no job trains on, and the driver says how to go on."""
    command = ["-m", *KMEANS, *words, "seed=0,1", "trainer.max_epochs=5000", *SUBMITIT]
    driver = begin(command, tmp_path)
    sweep = tmp_path / "sweep"
    wait_for_epochs(sweep, jobs=2)
    jobs = tasks(driver)
    assert len(jobs) == 2
    driver.send_signal(number)
    assert driver.wait(60) == 130
    assert f"Interrupted; the same command continues {sweep}" in (tmp_path / "err").read_text()
    assert psutil.wait_procs(jobs, timeout=10)[1] == []
    assert {run_state(run) for run in jobs_of(sweep).values()} == {"interrupted"}


# -- a Ray cluster ----------------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Two nodes of a core each, started in the folders first and second; `kill` on stdin kills the second."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    with (
        tempfile.TemporaryDirectory(
            prefix="ray-", dir="/tmp"
        ) as sockets,  # their names must be short
        subprocess.Popen(  # whose end closes its stdin, and waits for it
            [sys.executable, str(ROOT / "tests" / "ray_cluster.py"), *map(str, folders)],
            env=os.environ | {"RAY_TMPDIR": sockets},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process,
    ):
        yield process


@pytest.fixture
def address(cluster: "subprocess.Popen[str]") -> str:
    assert cluster.stdout is not None
    return cluster.stdout.readline().strip()


@pytest.fixture
def home(tmp_path: Path, tiny: Path) -> Path:
    """A third folder, with the data in it."""
    shutil.copytree(tiny, tmp_path / "home" / "images")
    return tmp_path / "home"


def on_ray(words: list[str]) -> list[str]:
    """A sweep of six jobs on Ray, with relative paths; the data is named by the environment."""
    sizes = [word for word in words if not word.startswith(("data.root", "data.source"))]
    return [
        "-m",
        *KMEANS,
        *sizes,
        "seed=0,1,2,3,4,5",
        "hydra/launcher=ray",
        "hydra.sweep.dir=outputs/mine",
    ]


@pytest.mark.parametrize("killed", [False, True], ids=["undisturbed", "a node killed"])
def test_a_cluster_whose_nodes_were_started_elsewhere(
    killed: bool,
    cluster: "subprocess.Popen[str]",
    address: str,
    home: Path,
    words: list[str],
    tmp_path: Path,
) -> None:
    """Results are where the command was given, of the data that was named there, all six; nothing is elsewhere."""
    epochs_each = 100 if killed else 3
    command = [*on_ray(words), f"trainer.max_epochs={epochs_each}"]
    # Found through RAY_ADDRESS, or named in the command.
    if killed:
        driver = begin(command, home, DIGITLAB_DATA="images", RAY_ADDRESS=address)
        wait_for_epochs(home / "outputs" / "mine", jobs=2)
        assert cluster.stdin is not None
        cluster.stdin.write("kill\n")
        cluster.stdin.flush()
    else:
        command.append(f"hydra.launcher.ray.init.address={address}")
        driver = begin(command, home, DIGITLAB_DATA="images")
    code, out = driver.wait(400), (home / "out").read_text()
    assert code == 0, out + (home / "err").read_text()
    assert "6 jobs: 6 completed." in out
    made = jobs_of(home / "outputs" / "mine").values()
    assert [results(run)["data"]["source"] for run in made] == ["files"] * 6
    assert len({results(run)["data"]["digest"] for run in made}) == 1
    assert sorted(path.name for path in home.iterdir()) == ["err", "images", "out", "outputs"]
    assert not [*(tmp_path / "first").iterdir(), *(tmp_path / "second").iterdir()]
    for job in range(1, 7):
        assert re.search(rf"Job {job} of 6 \| epoch +{epochs_each}/{epochs_each} ", out)
        # Lines that are alike but for their job are not hidden.
        assert re.search(rf"Job {job} of 6 \|   test/accuracy", out)


def test_a_worker_that_does_not_see_the_data_says_so(
    address: str, home: Path, words: list[str]
) -> None:
    """A folder that is not there: each job fails with the reason, none trains on other images."""
    command = [*on_ray(words), f"hydra.launcher.ray.init.address={address}"]
    driver = begin(command, home, DIGITLAB_DATA="typo")
    assert driver.wait(400) == 1
    out = (home / "out").read_text()
    assert "6 jobs: 6 failed." in out
    assert len(re.findall(r"data\.root=\S+/home/typo: is not a folder, and with", out)) >= 6
    made = jobs_of(home / "outputs" / "mine").values()
    assert [results(run)["status"] for run in made] == ["failed"] * 6


def test_sigterm_of_a_driver_on_ray_ends_in_a_line(
    address: str, home: Path, words: list[str]
) -> None:
    """The line and the exit code of every other launcher, without Ray's stack traces; its jobs end."""
    command = [
        *on_ray(words),
        "trainer.max_epochs=5000",
        f"hydra.launcher.ray.init.address={address}",
    ]
    driver, sweep = begin(command, home, DIGITLAB_DATA="images"), home / "outputs" / "mine"
    wait_for_epochs(sweep, jobs=2)
    driver.terminate()
    assert driver.wait(60) == 130
    last = (home / "err").read_text().splitlines()
    assert last[-1] == f"Interrupted; the same command continues {sweep}"
    assert "SIGTERM received" not in "\n".join(last)
    wait_until(lambda: all(run_state(run) == "interrupted" for run in jobs_of(sweep).values()), 30)
