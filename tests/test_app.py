"""Sweeps: their jobs and directories, repetition and repair, locks, kills, and launchers."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from digitlab.config import schema, validation
from digitlab.report import progress
from digitlab.runs.provenance import make_run_id
from digitlab.runs.results import run_state
from digitlab.runtime import launchers
from digitlab.training.experiment import run_experiment
from hydra_plugins.resumable_sweeper.jobs import extend_plan

from .conftest import (
    ROOT,
    RunTrain,
    StartTrain,
    compose,
    find_jobs,
    load_results,
    make_sweeper,
    plan_jobs,
    read_outputs,
    run_in_process,
)
from .training.test_experiment import KMEANS, assert_same

SWEEPS = schema.choices("sweep")


@pytest.fixture
def grid(overrides: list[str], tmp_path: Path) -> list[str]:
    """Return the command of a sweep of four short k-means jobs in tmp_path/sweep."""
    return [
        "-m",
        *KMEANS,
        *overrides,
        "optimizer.lr=1,100",
        "seed=0,1",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
    ]


# -- the jobs and the directory of a sweep -----------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_runs(name: str, overrides: list[str], tmp_path: Path) -> None:
    """The jobs of each YAML in conf/sweep differ, and the shortest trains on small data."""
    swept_keys = {"q2c/epochs": "trainer.max_epochs", "q2c/batch_size": "data.batch_size"}
    swept_key = swept_keys.get(name)
    small = [*overrides, "trainer.max_epochs=1"]
    small = [override for override in small if override.partition("=")[0] != swept_key]
    cfgs = compose("-m", f"sweep={name}", *small)
    assert len({make_run_id(validation.to_plain(cfg)) for cfg in cfgs}) == len(cfgs) > 1
    # Of several equally short jobs this is the last.
    shortest = min(reversed(cfgs), key=lambda cfg: cfg.trainer.max_epochs)
    run_experiment(shortest, tmp_path)
    assert load_results(tmp_path)["status"] == "completed"


def test_the_sweeps_of_q2c_have_the_values_of_the_report() -> None:
    """Each sweep has the values that the seed report names, and holds out 5,000 images."""

    def values(name: str, key: str) -> list[Any]:
        swept: list[Any] = []
        for cfg in compose("-m", f"sweep=q2c/{name}"):
            swept.append(OmegaConf.select(cfg, key))
            assert cfg.data.val_size == 5000, "a search compares losses of held-out images"
        return swept

    assert values("learning_rate", "optimizer.lr") == [0.01, 0.05, 0.1]
    assert values("epochs", "trainer.max_epochs") == [10, 20, 30, 50]
    assert values("batch_size", "data.batch_size") == [32, 64, 128]
    assert values("weight_decay", "optimizer.weight_decay") == [0, 1e-5, 1e-4, 1e-3]


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("-m sweep=q2c/epochs seed=0,1", "q2c/epochs"),
        ("sweep=kmeans/init", "kmeans/init"),
        ("-m optimizer.lr=0.01,0.05 trainer.max_epochs=10,20", "optimizer.lr_trainer.max_epochs"),
        (
            "-m trainer.max_epochs=10,20,50 optimizer.lr=0.01",
            "optimizer.lr-0.01_trainer.max_epochs",
        ),
        ("-m model=kmeans init=digit,kmeans++ force=true", "init_model-kmeans"),
        ("-m model.channels=[8,16],[4,8]", "model.channels"),
        (
            "-m optimizer.lr=1,2 +hydra.launcher.ray.init.num_cpus=2 hydra/launcher=ray",
            "optimizer.lr",
        ),
        ("-m optimizer.lr=1,2 seed=0,1", "optimizer.lr"),
        ("-m optimizer.lr=1,2 seed=3", "optimizer.lr"),
        ("-m seed=0,1", "defaults"),
        ("-m", "defaults"),
    ],
)
def test_the_directory_of_a_sweep_follows_from_its_overrides(command: str, name: str) -> None:
    """The directory is named by the sweep's YAML, or else by the fixed values and the swept keys.

    A command with more values or more seeds has the same directory.
    """
    with make_sweeper(*(word for word in command.split() if word != "-m")) as sweeper:
        assert sweeper.directory == Path.cwd() / "outputs/sweeps" / name


def test_a_long_name_is_shortened_and_stays_unique() -> None:
    """Two names that differ only after 100 characters give different names of 100 characters."""
    many = [
        f"model.channels=[{','.join(['16'] * 5)}]",
        "data.train_size=1000",
        "optimizer.momentum=0.5",
        "data=smoke",
    ]
    many += ["optimizer.weight_decay=1e-4", "scheduler=cosine"]
    names = set()
    for size in (1, 2):
        with make_sweeper(*many, f"data.batch_size={size}") as sweeper:
            names.add(sweeper.directory.name)
    assert len(names) == 2
    assert all(len(name) <= 100 for name in names)


def test_a_mistake_in_the_last_job_is_reported_before_the_first_starts(
    run_train: RunTrain, overrides: list[str], tmp_path: Path
) -> None:
    """A value out of range anywhere in the grid gives exit code 2; nothing is written."""
    done = run_train("-m", *KMEANS, *overrides, "optimizer.lr=1,2,-3")
    assert done.returncode == 2
    assert done.stderr.endswith("Error: optimizer.lr=-3.0: must be > 0 and finite\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_equal_jobs_are_reported_and_run_once(run_train: RunTrain, overrides: list[str]) -> None:
    """A seed that is named twice is one job; a dry run and the sweep say so before it starts."""
    message = (
        "3 jobs were requested with 2 different configurations; each configuration runs once\n"
    )
    command = ["-m", *KMEANS, *overrides, "trainer.max_epochs=1", "seed=0,0,1"]
    assert message in run_train(*command, "dry_run=true").stdout
    done = run_train(*command)
    assert message in done.stdout
    assert "2 jobs: 2 completed." in done.stdout


@pytest.mark.slow
def test_an_interrupted_sweep_says_how_to_continue(
    start_train: StartTrain, overrides: list[str], tmp_path: Path
) -> None:
    """Ctrl-C in the second job gives exit code 130 and a remedy, and no further job starts.

    The page of the sweep shows this job while it runs, and that it was interrupted.
    """
    sweep_dir = tmp_path / "sweep"
    command = [
        "-m",
        *KMEANS,
        *overrides,
        "seed=0,1,2",
        "trainer.max_epochs=60",
        f"hydra.sweep.dir={sweep_dir}",
    ]
    process = start_train(command)
    wait_for_metrics(sweep_dir, jobs=2, seconds=100)
    page = sweep_dir / "report" / "report.html"
    running = page.read_text()
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130
    output = (tmp_path / "output").read_text()
    assert f"Interrupted; the same command continues {sweep_dir}\n" in output
    assert "<title>1 of 3" in running
    assert "data-written" in running
    assert "the same command continues the sweep" in page.read_text()
    assert "data-written" not in page.read_text()
    assert sorted(load_results(run)["status"] for run in find_jobs(sweep_dir).values()) == [
        "completed",
        "interrupted",
    ]


def wait_for_metrics(sweep_dir: Path, jobs: int, seconds: float) -> None:
    """Wait until some jobs of a sweep have written metrics, or until the time is over."""
    deadline = time.monotonic() + seconds
    while len([*sweep_dir.glob("*/metrics.csv")]) < jobs and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.slow
def test_sigterm_of_a_sweep_ends_its_workers(overrides: list[str], tmp_path: Path) -> None:
    """After SIGTERM of the command neither of two joblib workers trains further.

    The command says how to continue.
    """
    sweep_dir = tmp_path / "sweep"
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        "-m",
        *KMEANS,
        *overrides,
        "seed=0,1",
        "trainer.max_epochs=5000",
        "hydra.sweep.dir=sweep",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
    ]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 200
    wait_for_metrics(sweep_dir, jobs=2, seconds=200)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert f"Interrupted; the same command continues {sweep_dir}" in err
    assert process.returncode == 130
    states: set[str] = set()
    # A worker's lock is released when the worker has ended.
    while states != {"interrupted"} and time.monotonic() < deadline:
        time.sleep(0.1)
        states = {run_state(run) for run in find_jobs(sweep_dir).values()}
    assert states == {"interrupted"}


def test_joblib_refuses_jobs_of_several_devices(run_train: RunTrain, tmp_path: Path) -> None:
    """joblib's workers cannot start processes, which is reported before the first job."""
    done = run_train("-m", "seed=0,1", "trainer=ddp", "hydra/launcher=joblib")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "Error: trainer.devices=2: joblib's workers cannot start processes of their own"
    )
    assert list(tmp_path.iterdir()) == []


def test_joblib_refuses_a_full_process_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """joblib, which would wait forever for threads that cannot start, is refused.

    The check leaves no thread behind.
    """
    start, alive = threading.Thread.start, threading.active_count()

    def start_at_most_five(thread: threading.Thread) -> None:
        if threading.active_count() >= alive + 5:
            raise RuntimeError("can't start new thread")
        start(thread)

    with make_sweeper("seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2") as sweeper:
        assert sweeper.config is not None
        launcher = sweeper.config.hydra.launcher
    launchers.check_threads(launcher)
    monkeypatch.setattr(threading.Thread, "start", start_at_most_five)
    with pytest.raises(
        ValueError, match=r"workers need \d+ processes and threads, of which 5 start; .*ulimit -u"
    ):
        launchers.check_threads(launcher)
    assert threading.active_count() == alive


def test_the_best_loss_so_far_has_significant_digits(tmp_path: Path) -> None:
    """The progress line has 0.0523, and after a better job 1.23e-06."""
    plan_jobs(tmp_path, a="optimizer.lr=0", b="optimizer.lr=1")
    for name, loss, text in (("a", 0.0523, "0.0523"), ("b", 1.234e-6, "1.23e-06")):
        content = {"run_id": name, "status": "completed", "seed": 0, "config": {}}
        metrics = {"train/loss": loss, "val/loss": loss, "test/loss": loss}
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(content | {"metrics": metrics}))
        assert f"best so far: val/loss {text} (optimizer" in progress.standing(tmp_path, name)


# -- repeating a sweep -------------------------------------------------------------------------


@pytest.mark.slow
def test_the_same_command_skips_its_completed_jobs(
    run_train: RunTrain, grid: list[str], tmp_path: Path
) -> None:
    """The second time nothing is trained.

    dry_run says what will run before the first sweep, after it, and with one job damaged.
    """
    assert "4 to run" in run_train(*grid, "dry_run=true").stdout
    assert not (tmp_path / "sweep").exists()
    done = run_train(*grid)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(
        f"4 jobs in {tmp_path / 'sweep'}\nJob 1 of 4: optimizer.lr=1 seed=0\n"
    )
    assert "Job 4 of 4 ended; best so far: val/loss" in done.stdout
    jobs = find_jobs(tmp_path / "sweep")
    assert set(jobs) == {make_run_id(validation.to_plain(cfg)) for cfg in compose(*grid)}
    before = {run: (run / "results.json").stat().st_mtime_ns for run in jobs.values()}
    assert "4 to skip" in run_train(*grid, "dry_run=true").stdout
    again = run_train(*grid)
    assert again.returncode == 0
    assert "\n4 of 4 jobs already completed\n" in again.stdout
    assert "Job 1 of 4" not in again.stdout
    assert {run: (run / "results.json").stat().st_mtime_ns for run in before} == before
    (next(iter(before)) / "metrics.csv").unlink()
    dry_run = run_train(*grid, "dry_run=true").stdout
    assert "3 to skip" in dry_run
    assert "1 to run again" in dry_run


@pytest.mark.slow
def test_a_failed_job_stops_no_other_and_runs_again(
    run_train: RunTrain, overrides: list[str], tmp_path: Path
) -> None:
    """A rate that diverges between two others gives exit code 1 and a table of the failed jobs.

    The traceback is in the log of the job, and the same command would run it again.
    """
    sweep_dir = tmp_path / "sweep"
    command = ["-m", *KMEANS, *overrides, "optimizer.lr=1,1e30,2", f"hydra.sweep.dir={sweep_dir}"]
    done = run_train(*command)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    runs: dict[float, Path] = {}
    for run in find_jobs(sweep_dir).values():
        runs[load_results(run)["config"]["optimizer"]["lr"]] = run
    assert {lr: load_results(run)["status"] for lr, run in runs.items()} == {
        1: "completed",
        1e30: "diverged",
        2: "completed",
    }
    assert "Traceback" in (runs[1e30] / "train.log").read_text()
    table = done.stdout[done.stdout.index("Not completed:") :]
    assert re.search(r"optimizer\.lr=1e\+30 +diverged .*lower optimizer\.lr", table)
    assert "1 to run again" in run_train(*command, "dry_run=true").stdout
    report = (sweep_dir / "report" / "report.md").read_text()
    assert "| optimizer.lr=1e+30 | diverged" in report
    page = (sweep_dir / "report" / "report.html").read_text()
    assert "digitlab report" in page
    assert "raise Diverged" in page, "the end of its log"


@pytest.mark.slow
def test_a_sweep_frees_the_memory_of_its_completed_jobs(
    overrides: list[str], tmp_path: Path
) -> None:
    """After three jobs in one process at most one Trainer is alive.

    A Trainer holds the model and the data.
    """
    script = (
        "import gc, runpy, sys, weakref\n"
        "from lightning.pytorch import Trainer\n"
        "alive, begin = weakref.WeakSet(), Trainer.__init__\n"
        "Trainer.__init__ = lambda self, **options: (alive.add(self), begin(self, **options))[1]\n"
        f"sys.argv = ['train.py', '-m', 'seed=0,1,2', *{[*KMEANS, *overrides]!r}]\n"
        f"try:\n    runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"
        "except SystemExit as done:\n    print('exit', done.code)\n"
        "gc.collect()\n"
        "print('alive', len(alive))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert "exit 0" in done.stdout, done.stdout + done.stderr
    assert done.stdout.endswith(("alive 0\n", "alive 1\n"))


@pytest.mark.slow
def test_a_forced_sweep_runs_each_job_once(
    run_train: RunTrain, grid: list[str], tiny: Path, tmp_path: Path
) -> None:
    """force=true reruns all four jobs once, also if a seed is named twice.

    If it is interrupted after one job, the same command runs the other three, and once these are
    completed, all four. A dry run says so before. With other data all four run again, too.
    """
    forced, sweep_dir = [*grid, "force=true"], tmp_path / "sweep"
    assert run_train(*grid).returncode == 0
    again = run_train(*[word.replace("seed=0,1", "seed=0,1,0,1") for word in forced])
    assert again.returncode == 0, again.stderr
    assert again.stdout.count(" s of training (data:") == 4
    assert "4 to run again" in run_train(*forced, "dry_run=true").stdout
    with make_sweeper(*(word for word in grid if word != "-m")) as sweeper:
        assert sweeper.config is not None
        jobs = sweeper.plan(list(sweeper.config.hydra.overrides.task))
    extend_plan(sweep_dir, jobs, force=True)
    (rerun, *_) = find_jobs(sweep_dir).values()
    (rerun / "results.json").touch()
    (rerun / ".hydra" / "config.yaml").touch()
    assert "3 to run again" in run_train(*forced, "dry_run=true").stdout
    # With another data.root it is another forced sweep, of which no job has run.
    elsewhere = run_train(*forced, "data.root=elsewhere", "dry_run=true")
    assert "4 to run again" in elsewhere.stdout
    modified = (rerun / "results.json").stat().st_mtime_ns
    assert run_train(*forced).stdout.count(" s of training (data:") == 3
    assert (rerun / "results.json").stat().st_mtime_ns == modified
    assert "4 to run again" in run_train(*forced, "dry_run=true").stdout
    extend_plan(sweep_dir, jobs, force=True)
    for run in find_jobs(sweep_dir).values():
        (run / "results.json").touch()
        (run / ".hydra" / "config.yaml").touch()
    shutil.copytree(tiny, tmp_path / "copy")
    moved = run_train(*forced, f"data.root={tmp_path / 'copy'}")
    assert moved.returncode == 0, moved.stderr
    assert moved.stdout.count(" s of training (data:") == 4


@pytest.mark.slow
def test_a_sweep_says_that_skipped_jobs_have_other_data(
    overrides: list[str],
    run_train: RunTrain,
    run_train_process: RunTrain,
    tiny: Path,
    tmp_path: Path,
) -> None:
    """A sweep with other labels skips the completed jobs and says so at its end.

    With a copy of the data it skips them silently. Other processes report the same. A sweep of
    some of the jobs says how many runs of its report belong to earlier commands.
    """
    for folder in ("same", "other"):
        shutil.copytree(tiny, tmp_path / folder)
    labels = tmp_path / "other" / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + bytes([0]))
    command = [
        "-m",
        *KMEANS,
        *overrides,
        "seed=0,1",
        "trainer.max_epochs=1",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
    ]
    first = run_train(*command, f"data.root={tiny}").stdout
    same = run_train(*command, f"data.root={tmp_path / 'same'}").stdout
    other = run_train_process(
        *command, f"data.root={tmp_path / 'other'}", "hydra/launcher=joblib"
    ).stdout
    assert "from other code or other data" not in first + same
    assert "earlier commands" not in first + same
    assert f"2 of 2 jobs already completed, 2 from data.root={tiny}\n" in other
    part = run_train(*command, "seed=1").stdout
    assert part.startswith(f"1 job in {tmp_path / 'sweep'}\n1 of 1 job already completed\n")
    assert part.endswith("Runs of earlier commands among these: 1\n")
    assert "2 of these results come from other code or other data" in other.splitlines()[-2]


@pytest.mark.parametrize("launcher", ["basic", pytest.param("joblib", marks=pytest.mark.slow)])
def test_a_completed_sweep_survives_force_without_its_data(
    launcher: str,
    overrides: list[str],
    run_train_process: RunTrain,
    run_train: RunTrain,
    tmp_path: Path,
) -> None:
    """force=true with a missing data.root fails with exit code 1 and leaves each file unchanged.

    This holds for a sweep in one process and in several.
    """
    command = [
        "-m",
        *KMEANS,
        *overrides,
        "seed=0,1",
        "trainer.max_epochs=1",
        "hydra.sweep.dir=sweep",
    ]
    assert run_train(*command).returncode == 0
    before = read_outputs(tmp_path / "sweep")
    run = run_train if launcher == "basic" else run_train_process
    done = run(*command, "data.root=missing", "force=true", f"hydra/launcher={launcher}")
    assert done.returncode == 1
    reason = "missing: is not a folder, and with data.verify=false nothing is downloaded"
    assert done.stdout.count(f"{reason}; the earlier") == 2
    after = read_outputs(tmp_path / "sweep")
    of_jobs = [path for path in before if path.parent.name != "report"]
    assert len(of_jobs) > 14
    assert all(after[path] == before[path] for path in of_jobs)


@pytest.mark.slow
def test_the_directory_of_a_sweep_may_contain_the_time(
    run_train: RunTrain, overrides: list[str], tmp_path: Path
) -> None:
    """`${now:...}` in hydra.sweep.dir is resolved once: jobs, plan and report share a directory."""
    done = run_train(
        "-m",
        *KMEANS,
        *overrides,
        "trainer.max_epochs=1",
        "seed=0,1",
        r"hydra.sweep.dir='it\'s/${now:%H-%M-%S-%f}'",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (sweep_dir,) = (tmp_path / "it's").iterdir()
    assert (sweep_dir / "report" / "report.md").is_file()
    assert len(find_jobs(sweep_dir)) == 2
    assert "2 jobs: 2 completed." in done.stdout


def test_the_yaml_of_a_sweep_may_name_its_directory(tmp_path: Path) -> None:
    """`hydra.sweep.dir` in the YAML holds unless the command names another directory.

    Without it the directory has the name of the YAML.
    """
    (tmp_path / "sweep").mkdir()
    package, params = "# @package _global_\n", "sweeper: {params: {seed: '0,1'}}"
    directory = "sweep: {dir: 'there/${now:%Y}'}"
    (tmp_path / "sweep" / "mine.yaml").write_text(f"{package}hydra: {{{params}, {directory}}}\n")
    (tmp_path / "sweep" / "other.yaml").write_text(f"{package}hydra: {{{params}}}\n")
    search_path = f"hydra.searchpath=[file://{tmp_path}]"
    for command, expected in (
        (["sweep=mine"], f"there/{time.localtime().tm_year}"),
        (["sweep=mine", "hydra.sweep.dir=here"], "here"),
        (["sweep=other"], "outputs/sweeps/other"),
    ):
        with make_sweeper(*command, search_path) as sweeper:
            assert sweeper.directory == Path.cwd() / expected


# -- independence of jobs ----------------------------------------------------------------------


@pytest.mark.slow
def test_a_job_does_not_depend_on_the_jobs_before_it(
    run_train: RunTrain, overrides: list[str], tmp_path: Path
) -> None:
    """The last of four jobs, of which some fail, has the bits of the same job run alone."""
    small = [*overrides, "trainer.max_epochs=2", "data.train_size=200", "data.val_size=100"]
    command = [
        "-m",
        "optimizer.lr=1e30,0.1",
        "scheduler=constant,linear",
        *small,
        "model.channels=[4,8]",
    ]
    done = run_train(*command, f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert done.returncode == 1
    last = compose(*command)[-1]
    name = make_run_id(validation.to_plain(last))
    alone = run_train(
        "optimizer.lr=0.1",
        "scheduler=linear",
        *small,
        "model.channels=[4,8]",
        f"hydra.run.dir={tmp_path / 'one'}",
    )
    assert alone.returncode == 0, alone.stderr
    assert_same(tmp_path / "one", tmp_path / "sweep" / name)


# -- locks and kills ---------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_on_one_sweep_run_each_job_once(
    start_train: StartTrain, grid: list[str], tmp_path: Path
) -> None:
    """Two equal commands that start together both succeed, and train four times in total.

    With force=true they do the same again.
    """
    output = tmp_path / "output"
    for more in ([], ["force=true"]):
        both = [start_train([*grid, "trainer.max_epochs=10", *more]) for _ in range(2)]
        for process in both:
            process.join()
        assert [process.exitcode for process in both] == [0, 0], output.read_text()
        assert output.read_text().count(" s of training (data:") == 4
        assert len(find_jobs(tmp_path / "sweep")) == 4
        output.unlink()


@pytest.mark.slow
def test_a_second_command_in_a_folder_adds_to_the_plan(
    run_train: RunTrain, overrides: list[str], tmp_path: Path
) -> None:
    """The new jobs are numbered after the planned ones, which the report lists as not started."""
    sweep_dir = tmp_path / "sweep"
    command = ["-m", *KMEANS, *overrides, "trainer.max_epochs=1", "hydra.sweep.dir=sweep"]
    with make_sweeper(*command[1:], "seed=0,1", f"hydra.sweep.dir={sweep_dir}") as sweeper:
        assert sweeper.config is not None
        jobs = sweeper.plan(list(sweeper.config.hydra.overrides.task))
    extend_plan(sweep_dir, jobs, force=False)
    done = run_train(*command, "seed=1,2,3")
    assert done.returncode == 0, done.stderr
    started = re.findall(r"^Job (\d) of (\d): (.*)$", done.stdout, re.MULTILINE)
    assert started == [("2", "4", "seed=1"), ("3", "4", "seed=2"), ("4", "4", "seed=3")]
    assert "4 jobs: 3 completed, 1 not started." in done.stdout
    # The job with seed=0 belongs to no running command, so no time is left.
    assert "less than a minute left" not in done.stdout.split("Job 4 of 4 ended")[1]


@pytest.mark.slow
def test_a_sweep_killed_many_times_ends_like_an_undisturbed_one(
    start_train: StartTrain, grid: list[str], tmp_path: Path
) -> None:
    """A sweep that receives SIGKILL at 10 random moments ends with the same bits.

    No completed job runs again.
    """
    undisturbed, killed, output = tmp_path / "undisturbed", tmp_path / "killed", tmp_path / "output"

    def start_sweep(directory: Path) -> Any:
        return start_train([*grid, "trainer.max_epochs=20", f"hydra.sweep.dir={directory}"])

    start = time.monotonic()
    process = start_sweep(undisturbed)
    process.join()
    duration = time.monotonic() - start
    assert process.exitcode == 0, output.read_text()
    completed: dict[Path, int] = {}
    rng, counts = random.Random(0), set()
    for _ in range(10):
        process = start_sweep(killed)
        time.sleep(rng.uniform(0.1, 0.5) * duration)
        process.kill()
        process.join()
        for path, modified in completed.items():
            assert path.stat().st_mtime_ns == modified, f"{path} was completed and has run again"
        for run in find_jobs(killed).values():
            if run_state(run) == "completed":
                completed[run / "results.json"] = (run / "results.json").stat().st_mtime_ns
        counts.add(len(completed))
    process = start_sweep(killed)
    process.join()
    assert process.exitcode == 0, output.read_text()
    assert len(counts) > 1, "all kills hit the start of the first job, which proves little"
    for name, run in find_jobs(undisturbed).items():
        assert_same(run, killed / name)


# -- launchers ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["joblib", "hydra.launcher.n_jobs=2"],
        ["submitit_local"],
        ["ray", "+hydra.launcher.ray.init.num_cpus=2"],
    ],
    ids=lambda launcher: str(launcher[0]),
)
def test_every_launcher_runs_skips_and_reports(
    launcher: list[str], run_train_process: RunTrain, grid: list[str], tmp_path: Path
) -> None:
    """If one of two jobs diverges, a sweep has exit code 1 and a table; with other values, 0.

    The second sweep skips the completed job. A job has the bits of the same job in this process.
    """
    name, *options = launcher
    choice = ["seed=1", f"hydra/launcher={name}", *options]
    diverging = [word.replace("1,100", "1,1e30") for word in grid]
    done = run_train_process(*diverging, *choice)
    assert done.returncode == 1, done.stdout + done.stderr
    states = sorted(load_results(run)["status"] for run in find_jobs(tmp_path / "sweep").values())
    assert states == ["completed", "diverged"]
    assert "1 diverged" in done.stdout
    # Several workers write to one console, so each line names its job.
    if name == "joblib":
        for line in ("Job 1 of 2 | epoch 3/3  train/loss", "Job 2 of 2 | Diverged: "):
            assert line in done.stdout
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep").glob("*/results.json")}
    done = run_train_process(*grid, *choice)
    assert done.returncode == 0, done.stdout + done.stderr
    # One job is skipped, and one is not part of the second command.
    assert sum(path.stat().st_mtime_ns == modified for path, modified in before.items()) == 2
    small = [word for word in grid if word.startswith(("data", "trainer"))]
    command = [*KMEANS, *small, "optimizer.lr=100", "seed=1"]
    run_in_process(command, tmp_path / "alone")
    (cfg,) = compose(*command)
    assert_same(tmp_path / "alone", tmp_path / "sweep" / make_run_id(validation.to_plain(cfg)))


@pytest.mark.skipif(shutil.which("srun") is not None, reason="this machine has Slurm")
def test_a_missing_slurm_is_reported(run_train: RunTrain, grid: list[str]) -> None:
    """hydra/launcher=submitit_slurm without Slurm gives exit code 1, the reason and no job."""
    done = run_train(*grid, "hydra/launcher=submitit_slurm")
    assert done.returncode == 1
    assert 'Error: the launcher stopped: RuntimeError: Could not detect "srun"' in done.stderr
    assert "4 jobs: 4 not started." in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_job_on_two_devices_runs_in_a_sweep(
    run_train: RunTrain, grid: list[str], tmp_path: Path
) -> None:
    """Each DDP job of a multirun trains with two processes, and none starts the sweep again."""
    done = run_train(*grid, "trainer=ddp", "trainer.accelerator=cpu", "seed=0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(find_jobs(tmp_path / "sweep")) == 2
    for line in ("2 jobs in ", "Job 2 of 2: optimizer.lr=100"):
        assert done.stdout.count(line) == 1
