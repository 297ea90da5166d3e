"""Sweeps whose jobs run in other processes: preemption, a Ray cluster, and the driver's signals."""

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

from .conftest import ROOT, find_jobs, load_results, run_in_process
from .training.test_experiment import KMEANS, assert_same

pytestmark = pytest.mark.slow


def start_driver(command: list[str], folder: Path, **variables: str) -> "subprocess.Popen[str]":
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


def wait_until(condition: Callable[[], bool], seconds: float = 200) -> None:
    """Wait until a condition holds; fail after a time limit."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not hold in time"
        time.sleep(0.05)


def count_epochs(run: Path) -> int:
    """Return the number of epochs that a run has completed."""
    return int((read_results(run) or {}).get("epochs", 0))


def wait_for_epochs(sweep_dir: Path, more_than: int = 0, jobs: int = 1) -> list[Path]:
    """Wait until jobs of a sweep have trained; returns the directories of those that have.

    Args:
        sweep_dir: The directory of the sweep.
        more_than: A job has trained when it has completed more epochs than this.
        jobs: The number of jobs to wait for.
    """

    def find_trained() -> list[Path]:
        return [run for run in find_jobs(sweep_dir).values() if count_epochs(run) > more_than]

    wait_until(lambda: len(find_trained()) >= jobs)
    return find_trained()


def find_tasks(driver: "subprocess.Popen[str]") -> list[psutil.Process]:
    """Find the processes in which submitit runs the jobs of a sweep."""
    children = psutil.Process(driver.pid).children(recursive=True)
    return [child for child in children if "submitit.core._submit" in child.cmdline()]


SUBMITIT = ["hydra/launcher=submitit_local", "hydra.sweep.dir=sweep"]


def test_a_job_that_submitit_requeues_resumes_bitwise(overrides: list[str], tmp_path: Path) -> None:
    """A job that is preempted twice while it trains ends as an uninterrupted one, in one sweep."""
    command = [*KMEANS, *overrides, "seed=0", "trainer.max_epochs=120"]
    driver = start_driver(["-m", *command, *SUBMITIT], tmp_path)
    completed_epochs, preemptions = 0, 2
    for _ in range(preemptions):
        (run,) = wait_for_epochs(tmp_path / "sweep", completed_epochs)
        (task,) = find_tasks(driver)
        task.send_signal(signal.SIGUSR2)
        task.wait(60)
        completed_epochs = count_epochs(run)
    assert load_results(run)["status"] == "interrupted"
    assert driver.wait(200) == 0, (tmp_path / "err").read_text()
    run_in_process(command, tmp_path / "uninterrupted")
    assert_same(tmp_path / "uninterrupted", run)
    log = (run / "train.log").read_text()
    assert log.count("Resuming from") == preemptions, log
    assert "Traceback" not in log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_jobs_of_submitit_local_end_with_their_driver(
    number: int, overrides: list[str], tmp_path: Path
) -> None:
    """After SIGTERM or Ctrl-C no job trains further, and the driver says how to continue."""
    command = ["-m", *KMEANS, *overrides, "seed=0,1", "trainer.max_epochs=5000", *SUBMITIT]
    driver = start_driver(command, tmp_path)
    sweep_dir = tmp_path / "sweep"
    wait_for_epochs(sweep_dir, jobs=2)
    jobs = find_tasks(driver)
    assert len(jobs) == 2
    driver.send_signal(number)
    assert driver.wait(60) == 130
    assert f"Interrupted; the same command continues {sweep_dir}" in (tmp_path / "err").read_text()
    assert psutil.wait_procs(jobs, timeout=10)[1] == []
    assert {run_state(run) for run in find_jobs(sweep_dir).values()} == {"interrupted"}


# -- a Ray cluster -----------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Start a cluster of two nodes with one core each in the folders first and second.

    A line on the stdin of this process kills the second node.
    """
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    with (
        # The paths of sockets must be short.
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as sockets,
        # The end of the block closes stdin, which ends the process, and waits for that.
        subprocess.Popen(
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
    """Read the address of the cluster."""
    assert cluster.stdout is not None
    return cluster.stdout.readline().strip()


@pytest.fixture
def home(tmp_path: Path, tiny: Path) -> Path:
    """Copy the data into the folder in which the driver runs; returns that folder."""
    shutil.copytree(tiny, tmp_path / "home" / "images")
    return tmp_path / "home"


def on_ray(overrides: list[str], *seeds: int) -> list[str]:
    """Return a sweep on Ray with a relative path; the environment names the data."""
    sizes = [word for word in overrides if not word.startswith(("data.root", "data.source"))]
    return [
        "-m",
        *KMEANS,
        *sizes,
        f"seed={','.join(map(str, seeds))}",
        "hydra/launcher=ray",
        "hydra.sweep.dir=outputs/mine",
    ]


def test_a_cluster_whose_nodes_were_started_elsewhere(
    cluster: "subprocess.Popen[str]",
    address: str,
    home: Path,
    overrides: list[str],
    tmp_path: Path,
) -> None:
    """Relative paths refer to the driver's folder: all results and their data are in it.

    The folders of the nodes stay empty. A node that is killed leaves its jobs to the other one.
    """
    command = [*on_ray(overrides, 0, 1, 2, 3), "trainer.max_epochs=100"]
    driver = start_driver(command, home, DIGITLAB_DATA="images", RAY_ADDRESS=address)
    wait_for_epochs(home / "outputs" / "mine", jobs=2)
    assert cluster.stdin is not None
    cluster.stdin.write("kill\n")
    cluster.stdin.flush()
    code, out = driver.wait(400), (home / "out").read_text()
    assert code == 0, out + (home / "err").read_text()
    assert "4 jobs: 4 completed." in out
    runs = find_jobs(home / "outputs" / "mine").values()
    assert [load_results(run)["data"]["source"] for run in runs] == ["files"] * 4
    assert len({load_results(run)["data"]["digest"] for run in runs}) == 1
    assert sorted(path.name for path in home.iterdir()) == ["err", "images", "out", "outputs"]
    assert not [*(tmp_path / "first").iterdir(), *(tmp_path / "second").iterdir()]
    for job in range(1, 5):
        assert re.search(rf"Job {job} of 4 \| epoch +100/100 ", out)
        # Ray does not merge lines that differ only in their job.
        assert re.search(rf"Job {job} of 4 \|   test/accuracy", out)


def test_a_worker_without_the_data_and_a_driver_that_is_ended(
    address: str, home: Path, overrides: list[str]
) -> None:
    """If the folder of the data is missing, each job says so and none trains on other images.

    After SIGTERM the driver prints the line of all launchers, without Ray's stack traces, and has
    their exit code. The jobs end as well. The address of the cluster is in the command.
    """
    command = [*on_ray(overrides, 0, 1), f"hydra.launcher.ray.init.address={address}"]
    driver = start_driver(command, home, DIGITLAB_DATA="typo")
    assert driver.wait(400) == 1
    out = (home / "out").read_text()
    assert "2 jobs: 2 failed." in out
    assert len(re.findall(r"data\.root=\S+/home/typo: is not a folder, and with", out)) >= 2
    sweep_dir = home / "outputs" / "mine"
    runs = find_jobs(sweep_dir).values()
    assert [load_results(run)["status"] for run in runs] == ["failed"] * 2

    command = [*command, "trainer.max_epochs=5000"]
    driver = start_driver(command, home, DIGITLAB_DATA="images")
    trained = wait_for_epochs(sweep_dir, jobs=2)
    driver.terminate()
    assert driver.wait(60) == 130
    lines = (home / "err").read_text().splitlines()
    assert lines[-1] == f"Interrupted; the same command continues {sweep_dir}"
    assert "SIGTERM received" not in "\n".join(lines)
    wait_until(lambda: all(run_state(run) == "interrupted" for run in trained), 30)
