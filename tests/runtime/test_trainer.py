"""A run depends only on its configuration, not on its environment or working directory."""

import errno
import fcntl
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet

from digitlab.report.page import write_report
from digitlab.runs.results import read_results, run_state

from ..conftest import ROOT, RunTrain, copy_run, load_results, run_in_process
from ..runtime.test_signals import AUTOENCODER
from ..training.test_experiment import KMEANS, assert_same

SLURM = {
    "SLURM_JOB_ID": "124",
    "SLURM_JOB_NAME": "train",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NODELIST": "localhost",
    "SLURM_NTASKS": "4",
}
ELASTIC = {
    "TORCHELASTIC_RUN_ID": "7",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    **{"RANK": "3", "LOCAL_RANK": "3", "GROUP_RANK": "1", "NODE_RANK": "1", "WORLD_SIZE": "4"},
    **{"MASTER_ADDR": "192.0.2.1", "MASTER_PORT": "1"},
}
LSF = {"LSB_JOBID": "1", "LSB_DJOB_RANKFILE": "/nothing", "JSM_NAMESPACE_RANK": "2"}
LIGHTNING = {"PL_TRAINER_LIMIT_TRAIN_BATCHES": "1", "PL_TRAINER_MAX_STEPS": "2"}
ENVIRONMENTS = {"slurm": SLURM, "torchrun": ELASTIC, "lsf": LSF, "lightning": LIGHTNING}


ALL_VARIABLES = SLURM | ELASTIC | LSF | LIGHTNING


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "environments"),
    [(KMEANS, ENVIRONMENTS), (AUTOENCODER, {"all at once": ALL_VARIABLES})],
    ids=["kmeans", "autoencoder"],
)
def test_the_variables_of_a_scheduler_change_nothing(
    model: list[str],
    environments: dict[str, dict[str, str]],
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor does another run's checkpoint in the working directory, with Slurm's name for it."""
    command = [*model, *overrides, "trainer.max_epochs=2"]
    run_in_process(command, tmp_path / "expected")
    folder = tmp_path / "folder"
    folder.mkdir()
    run_in_process([*command, "seed=1", "trainer.max_epochs=1"], tmp_path / "other")
    shutil.copy(tmp_path / "other" / "checkpoints" / "last.ckpt", folder / "hpc_ckpt_1.ckpt")
    monkeypatch.chdir(folder)
    for name, variables in environments.items():
        with monkeypatch.context() as patch:
            for variable, value in variables.items():
                patch.setenv(variable, value)
            run_in_process(command, tmp_path / name)
        assert_same(tmp_path / "expected", tmp_path / name)
    assert [path.name for path in folder.iterdir()] == ["hpc_ckpt_1.ckpt"]


@pytest.mark.slow
def test_ddp_ignores_the_variables_of_schedulers(
    run_train: RunTrain,
    run_train_process: RunTrain,
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Slurm's and torchrun's are set together, for a new process: it reads some when it starts."""
    command = [*KMEANS, *overrides, "trainer=ddp"]
    assert run_train(*command, f"hydra.run.dir={tmp_path / 'expected'}").returncode == 0
    for variable, value in (SLURM | ELASTIC).items():
        monkeypatch.setenv(variable, value)
    done = run_train_process(*command, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "expected", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_from_slurm_interrupts_a_run(
    number: int, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run prints how to continue, and writes nothing outside its directory."""
    for variable, value in SLURM.items():
        monkeypatch.setenv(variable, value)
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        *KMEANS,
        *overrides,
        "trainer.max_epochs=500",
    ]
    run = tmp_path / "run"
    process = subprocess.Popen(
        [*command, f"hydra.run.dir={run}"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (read_results(run) or {}).get("epochs") and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, f"Continue with: python train.py resume={run}\n")
    assert load_results(run)["status"] == "interrupted"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert not list(run.rglob("hpc_ckpt*"))


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(
    number: int,
    kmeans_run: Path,
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A run and a sweep fail with an error that names the lock; existing results stay readable."""
    program = runpy.run_path(str(ROOT / "train.py"), run_name="program")
    finished = copy_run(kmeans_run, tmp_path / "finished")

    def flock(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.chdir(tmp_path)
    commands = ((1, "run", ["hydra.run.dir=run"]), (2, "sweep", ["hydra.sweep.dir=sweep", "-m"]))
    for code, folder, more in commands:
        monkeypatch.setattr(sys, "argv", ["train.py", *KMEANS, *overrides, *more])
        assert program["main"]() == code
        output = "".join(capsys.readouterr())
        rule = rf"file locks do not work on this file system \({os.strerror(number)}\)"
        assert re.search(rf"\b{folder}/\S*\.lock: {rule}; choose", output), output
        assert "Traceback" not in output
    assert run_state(finished) == "completed"
    assert write_report([finished], tmp_path / "report")


def test_the_package_requires_a_python_version_that_hydra_supports() -> None:
    """hydra-core 1.3 does not start on Python 3.14; README lists the supported versions."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    supported = SpecifierSet(project["requires-python"])
    assert "hydra-core>=1.3.2,<1.4" in project["dependencies"]
    assert [minor for minor in range(9, 20) if f"3.{minor}" in supported] == [11, 12, 13]
    assert "Python 3.11 to 3.13" in (ROOT / "README.md").read_text()
