"""A run depends on its configuration, whatever scheduler's variables are set and wherever it is started."""

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

from ..conftest import ROOT, Lab, results, run_here
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


@pytest.mark.parametrize("name", ENVIRONMENTS)
@pytest.mark.parametrize("model", ["kmeans", "autoencoder"])
def test_a_scheduler_s_variables_change_nothing(
    name: str, model: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started where another run's checkpoint lies under Slurm's name for it: the bits of a run elsewhere."""
    command = [*(KMEANS if model == "kmeans" else AUTOENCODER), *words]
    run_here([*command, "seed=1"], tmp_path / "other")
    run_here(command, tmp_path / "expected")
    place = tmp_path / "place"
    place.mkdir()
    shutil.copy(tmp_path / "other" / "checkpoints" / "last.ckpt", place / "hpc_ckpt_1.ckpt")
    monkeypatch.chdir(place)
    for variable, value in ENVIRONMENTS[name].items():
        monkeypatch.setenv(variable, value)
    run_here(command, tmp_path / "run")
    assert_same(tmp_path / "expected", tmp_path / "run")
    assert [path.name for path in place.iterdir()] == ["hpc_ckpt_1.ckpt"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["slurm", "torchrun"])
def test_two_processes_are_started_whatever_a_scheduler_says(
    name: str, shell: Lab, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With trainer=ddp as well, as a process of its own, which reads some variables as it starts."""
    command = [*KMEANS, *words, "trainer=ddp"]
    assert shell(*command, f"hydra.run.dir={tmp_path / 'expected'}").returncode == 0
    for variable, value in ENVIRONMENTS[name].items():
        monkeypatch.setenv(variable, value)
    done = shell(*command, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "expected", tmp_path / "run")


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_of_slurm_s_interrupts_a_run(
    number: int, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says how to go on, writes nothing outside its directory, and the next run there does not know of it."""
    for variable, value in SLURM.items():
        monkeypatch.setenv(variable, value)
    command = [sys.executable, str(ROOT / "train.py"), *KMEANS, *words, "trainer.max_epochs=500"]
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
    assert results(run)["status"] == "interrupted"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert not list(run.rglob("hpc_ckpt*"))


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(
    number: int, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run and a sweep there are refused in a line that names the file; what lies there can be looked at."""
    program = runpy.run_path(str(ROOT / "train.py"), run_name="program")
    finished = tmp_path / "finished"
    run_here([*KMEANS, *words], finished)

    def flock(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.chdir(tmp_path)
    for code, folder, more in ((1, "run", ["hydra.run.dir=run"]), (2, "sweep", ["-m", "hydra.sweep.dir=sweep"])):
        monkeypatch.setattr(sys, "argv", ["train.py", *KMEANS, *words, *more])
        assert program["main"]() == code
        told = "".join(capsys.readouterr())
        reason = rf"\b{folder}/\.lock: file locks do not work on this file system \({os.strerror(number)}\); choose"
        assert re.search(reason, told), told
        assert len(told.splitlines()) == code
    assert run_state(finished) == "completed"
    assert write_report([finished], tmp_path / "report")


def test_the_package_is_for_the_versions_of_python_that_hydra_runs_on() -> None:
    """hydra-core 1.3 does not start on Python 3.14: pip refuses it there, and README says which versions there are."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    supported = SpecifierSet(project["requires-python"])
    assert "hydra-core>=1.3.2,<1.4" in project["dependencies"]
    assert [minor for minor in range(9, 20) if f"3.{minor}" in supported] == [11, 12, 13]
    assert "Python 3.11 to 3.13" in (ROOT / "README.md").read_text()
