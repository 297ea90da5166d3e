"""The command `python train.py`: help, completion, exit codes, Hydra's flags, and its imports."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from digitlab.data.mnist import load

from .conftest import (
    OPTIONS,
    ROOT,
    RunTrain,
    enable_interrupts,
    load_results,
    write_rmsprop,
)


def run_script(script: str, *arguments: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run a Python script with arguments in a folder; it receives Ctrl-C."""
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=enable_interrupts,
    )


# -- help, completion and imports --------------------------------------------------------------


def test_completion_works_as_documented_and_runs_no_other_script(tmp_path: Path) -> None:
    """With the line of docs/usage.md in bash, TAB completes the overrides of train.py.

    After the name of another script, TAB does not run that script.
    """
    usage = (ROOT / "docs" / "usage.md").read_text()
    (line,) = re.findall(r"^    (eval .*)$", usage, re.MULTILINE)
    (tmp_path / "other.py").write_text("open('was_run', 'w')")

    def press_tab(folder: Path, command: str) -> str:
        variables = f'COMP_LINE="{command}" COMP_POINT={len(command)} COMP_CWORD=2 COMPREPLY=()'
        return f"cd {folder} && {variables}; hydra_bash_completion; echo ${{COMPREPLY[@]}}"

    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    train = press_tab(ROOT, "python train.py init=k")
    other = press_tab(tmp_path, "python other.py x")
    script = f"cd {ROOT} && {line} && {train}; {other}"
    done = subprocess.run(
        ["bash", "-c", script], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "init=kmeans++\n\n", done.stderr
    assert not (tmp_path / "was_run").exists()


LIST_IMPORTS = f"""
import runpy, sys

for command in sys.argv[1:]:
    sys.argv = ["train.py", *command.split()]
    try:
        runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")
    except SystemExit as done:
        print("exit", done.code or 0)
    slow = {{"torch", "lightning", "numpy", "matplotlib", "sklearn"}}
    print("slow imports", sorted(slow & set(sys.modules)))
"""


def test_help_and_mistakes_need_no_slow_imports(tmp_path: Path) -> None:
    """Help and mistakes answer quickly, because torch, which takes seconds, is not imported.

    The help lists all groups and options of conf/. A mistake creates no directory.
    """
    commands = {"--help": 0, "--cfg job": 0, "optimizer.lr=-1": 2, "optimizer.lrr=1": 2}
    done = run_script(LIST_IMPORTS, *commands, folder=tmp_path)
    codes = [line for line in done.stdout.splitlines() if line.startswith("exit ")]
    assert codes == [f"exit {code}" for code in commands.values()], done.stdout + done.stderr
    assert done.stdout.count("slow imports []\n") == len(commands)
    assert list(tmp_path.iterdir()) == []
    text, _, _ = done.stdout.partition("exit 0\n")
    for option in OPTIONS:
        group, name = option.split("=")
        assert re.search(rf"^ *{group}: [^:]*\b{re.escape(name)}", text, re.MULTILINE), option


COUNT_COMPOSITIONS = f"""
import runpy
from hydra._internal.config_loader_impl import ConfigLoaderImpl

compose = ConfigLoaderImpl._load_configuration_impl

def count(self, *arguments, **options):
    print("composed")
    return compose(self, *arguments, **options)

ConfigLoaderImpl._load_configuration_impl = count
runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")
"""


def test_a_grid_of_plain_values_is_composed_once(overrides: list[str], tmp_path: Path) -> None:
    """Hydra composes the mode, the sweep and one of six jobs; the others are copies of that one."""
    values = ["-m", "model=kmeans", *overrides, "seed=3,4,5", "optimizer.lr=1,2", "dry_run=true"]
    done = run_script(COUNT_COMPOSITIONS, *values, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("composed\n") == 3
    assert done.stdout.endswith(": 6 to run\n")


# -- exit codes --------------------------------------------------------------------------------


def test_a_missing_configuration_directory_is_reported(run_train: RunTrain) -> None:
    """The error of Hydra's --config-path is one line that names the directory."""
    done = run_train("--config-path", "/nowhere")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "/nowhere" in done.stderr


# The first argument says where the interrupt happens.
INTERRUPT = f"""
import importlib.machinery, os, signal, sys

class Finder:
    def find_spec(self, name, *_):
        if name == "digitlab.training.experiment":
            return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            pass

sys.path.insert(0, {str(ROOT)!r})
import train
from digitlab.config import validation

if sys.argv.pop(1) == "check":
    validation.check = lambda *_: os.kill(os.getpid(), signal.SIGINT)
else:
    sys.meta_path.insert(0, Finder())
sys.exit(train.main())
"""


@pytest.mark.parametrize("where", ["check", "import"])
def test_an_interrupt_before_a_run_starts_is_reported(where: str, tmp_path: Path) -> None:
    """Ctrl-C while the command is checked gives one line and exit code 130.

    So does Ctrl-C in an import that swallows it. No directory is created.
    """
    done = run_script(INTERRUPT, where, "seed=1", folder=tmp_path)
    assert (done.returncode, done.stderr) == (130, "Interrupted before a run started\n")
    assert not any(tmp_path.iterdir())


# -- Hydra's flags and plugins -----------------------------------------------------------------


def test_a_yaml_may_turn_a_run_into_a_sweep(
    run_train: RunTrain, overrides: list[str], tmp_path: Path
) -> None:
    """`hydra.mode: MULTIRUN` in an experiment gives a sweep with a plan, a name and a report."""
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    text = "# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {seed: '0,1'}}}\n"
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(text)
    command = ["--config-dir=own", "experiment=mine", "model=kmeans", *overrides, "dry_run=true"]
    done = run_train(*command)
    assert done.returncode == 0, done.stderr
    assert f"2 jobs in {tmp_path / 'outputs' / 'sweeps'}/" in done.stdout
    assert done.stdout.endswith(": 2 to run\n")


def read_files(directory: Path) -> dict[Path, bytes]:
    """Read all files of a directory."""
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_hydra_s_flags_work_and_overwrite_no_run(
    run_train: RunTrain, overrides: list[str], tmp_path: Path
) -> None:
    """--config-dir and --config-name work as Hydra documents.

    A command with another configuration leaves an existing run unchanged.
    """
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 7\n")
    (tmp_path / "own" / "other.yaml").write_text("defaults: [config]\nseed: 9\n")
    small = ["model=kmeans", *overrides, "trainer.max_epochs=1"]
    assert run_train(*small, "hydra.run.dir=run").returncode == 0
    before = read_files(tmp_path / "run")
    refused = run_train("--config-dir=own", *small, "experiment=mine", "hydra.run.dir=run")
    assert refused.returncode == 2
    assert refused.stderr.startswith("Error: run: holds a run of another configuration")
    assert before == read_files(tmp_path / "run")
    done = run_train(
        "-m",
        "--config-dir=own",
        *small,
        "experiment=mine",
        "init=digit,sample",
        "hydra.sweep.dir=sweep",
    )
    assert done.returncode == 0, done.stderr
    seeds = [json.loads(path.read_text())["seed"] for path in tmp_path.glob("sweep/*/results.json")]
    assert seeds == [7, 7]
    done = run_train("--config-dir=own", "--config-name=other", *small, "hydra.run.dir=named")
    assert done.returncode == 0, done.stderr
    assert load_results(tmp_path / "named")["seed"] == 9


@pytest.mark.slow
def test_hydra_s_basic_sweeper_runs_the_jobs(
    run_train: RunTrain, overrides: list[str], tmp_path: Path
) -> None:
    """hydra/sweeper=basic trains each job in its own directory, and refuses dry_run."""
    command = [
        "-m",
        "hydra/sweeper=basic",
        "model=kmeans",
        *overrides,
        "trainer.max_epochs=1",
        "seed=0,1",
    ]
    refused = run_train(*command, "hydra.sweep.dir=dry", "dry_run=true")
    assert refused.returncode == 2
    assert "dry_run=true: only hydra/sweeper=digitlab lists its jobs" in refused.stderr
    done = run_train(*command, "hydra.sweep.dir=sweep")
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("sweep/*/results.json"))) == 2
    failed = run_train(*command, "hydra.sweep.dir=sweep", "optimizer.lr=1e30")
    assert failed.returncode == 1
    assert "Traceback" not in failed.stdout + failed.stderr


def test_a_callback_of_the_user_is_called(run_train: RunTrain, overrides: list[str]) -> None:
    """`hydra.callbacks` on the command line works as documented, together with digitlab's."""
    callback = "+hydra.callbacks.log={_target_: hydra.experimental.callbacks.LogJobReturnCallback}"
    done = run_train(
        "model=kmeans", *overrides, "trainer.max_epochs=1", "hydra.run.dir=run", callback
    )
    assert done.returncode == 0, done.stderr
    assert "Succeeded with return value" in done.stdout


# -- extensions --------------------------------------------------------------------------------

FIRST_IMAGES = """
from digitlab.data.images import scale
from digitlab.models import register_init

@register_init("first")
def first(data, n_clusters, rng):
    return scale(data.images[:n_clusters]).flatten(1)
"""


@pytest.mark.slow
def test_an_optimizer_needs_one_yaml_and_an_init_one_file_and_one_yaml(
    run_train: RunTrain, overrides: list[str], tmp_path: Path
) -> None:
    """With these additions in a folder both train.

    Without the plugin the command is refused, and so is an invalid value of the optimizer.
    """
    conf = tmp_path / "conf"
    write_rmsprop(conf)
    (conf / "init").mkdir()
    (conf / "init" / "first.yaml").write_text("# @package model.init\nname: first\n")
    (tmp_path / "first_images.py").write_text(FIRST_IMAGES)

    def train(*arguments: str, code: int = 0) -> str:
        done = run_train(*arguments)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    own = ["--config-dir=conf", *overrides]
    refused = train("-m", *own, "model=kmeans", "init=digit,first", code=2)
    names = r"random, digit, sample, kmeans\+\+"
    rule = rf"must be one of {names}, or the register_init .*"
    message = rf"(Planning: .*\n)?Error: model.init.name=first: {rule}\n"
    assert re.fullmatch(message, refused)
    own += ["plugins=[first_images.py]", "data.val_size=0"]
    train(*own, "model=kmeans", "init=first", "optimizer.lr=1e-9", "hydra.run.dir=kmeans")
    images = load(overrides[0].removeprefix("data.root="), "files", verify=False).train.images
    assert np.allclose(
        np.load(tmp_path / "kmeans" / "centers.npy"), images[:10, 0] / 255, atol=1e-6
    )
    train(*own, "optimizer=rmsprop_tested", "optimizer.alpha=0.5", "hydra.run.dir=net")
    rows = (tmp_path / "net" / "metrics.csv").read_text().splitlines()[1:]
    losses = [float(row.split(",")[2]) for row in rows]
    assert losses[-1] < losses[0]
    swept = ["optimizer=rmsprop_tested", "optimizer.alpha=0.5,-1"]
    refused = train("-m", *own, *swept, code=2)
    message = "Error: optimizer=rmsprop: Invalid alpha value: -1 (with lr=0.001 alpha=-1)\n"
    assert refused.endswith(message)
    assert not (tmp_path / "outputs" / "sweeps").exists()
