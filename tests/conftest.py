"""Helpers of the tests: small generated data, and experiments as a process or in this process."""

import gzip
import json
import multiprocessing
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the cores. torch reads the variable when it is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import hydra
import numpy as np
import pytest
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from digitlab import app
from digitlab.config import errors, schema
from digitlab.models import autoencoder, digit_classifier
from digitlab.runtime import signals
from digitlab.training.experiment import run_experiment
from hydra_plugins.resumable_sweeper.jobs import Job, extend_plan
from hydra_plugins.resumable_sweeper.sweeper import ResumableSweeper

from . import forked

ROOT = Path(__file__).resolve().parents[1]
# make test-hydra-next: some messages are Hydra's own there, and some of its parts have changed.
HYDRA_14 = hydra.__version__.startswith("1.4")
# Each option of each group of conf/, such as `model=kmeans`.
OPTIONS = [f"{group}={name}" for group in schema.groups() for name in schema.choices(group)]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the slow tests, so that all workers end at about the same time."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write a uint8 array in MNIST's format."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def make_digits(number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Make noisy images of ten classes that k-means can separate, and their labels.

    Each class has a bright 8 x 8 square at a different position.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(number) % 10
    images = rng.integers(0, 40, (number, 28, 28))
    for image, label in zip(images, labels, strict=True):
        row, column = 9 * (label // 3) % 27, 9 * (label % 3)
        image[row : row + 8, column : column + 8] += 150 + 6 * label
    return images.astype(np.uint8), labels


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 600 training and 100 test images as IDX files; returns their folder."""
    folder = tmp_path_factory.mktemp("tiny")
    for part, number, seed in (("train", 600, 0), ("t10k", 100, 1)):
        images, labels = make_digits(number, seed)
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte", labels)
    return folder


@pytest.fixture(scope="session")
def dark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the same images with pixels 0 and 1 in place of 0 and 255; returns their folder."""
    folder = tmp_path_factory.mktemp("dark")
    for part, number, seed in (("train", 600, 0), ("t10k", 100, 1)):
        images, labels = make_digits(number, seed)
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images > 25)
        write_idx(folder / f"{part}-labels-idx1-ubyte", labels)
    return folder


def small_run(data: Path, max_epochs: int) -> list[str]:
    """Return the overrides that make an experiment small; the first is data.root."""
    sizes = [
        "data.val_size=100",
        "data.batch_size=20",
        f"trainer.max_epochs={max_epochs}",
        "trainer.accelerator=cpu",
    ]
    return [f"data.root={data}", "data.verify=false", "data.source=files", *sizes]


@pytest.fixture
def overrides(tiny: Path) -> list[str]:
    """Return the overrides of an experiment of three epochs; the first is data.root."""
    return small_run(tiny, 3)


@pytest.fixture(autouse=True)
def _default_signal_handlers() -> Iterator[None]:
    """Set the handlers of a new foreground process, and restore the previous ones after a test."""
    before = {number: signal.getsignal(number) for number in signals.ENDING}
    for number in before:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of the quickly trained digit classifiers of all tests."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        # That of the worker is in that of all workers.
        folder = folder.parent
    return folder / "classifiers"


@pytest.fixture(scope="session", autouse=True)
def quick_classifier(classifiers: Path) -> Iterator[pytest.MonkeyPatch]:
    """Share one quickly trained digit classifier among all tests, and score few samples by it."""
    with pytest.MonkeyPatch.context() as patch:
        forked.shorten_scoring(patch, classifiers)
        yield patch


@pytest.fixture
def full_classifier(quick_classifier: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore the classifier's training and the number of samples that users get."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digit_classifier, "EPOCHS", 4)
        patch.setattr(digit_classifier, "STEPS", 300)
        patch.setattr(autoencoder, "SCORED_SAMPLES", 10_000)
        yield


@pytest.fixture(scope="session")
def mnist() -> Path:
    """Return the folder of the real MNIST, or skip the test if there is none."""
    folder = Path(os.environ.get("DIGITLAB_DATA", ROOT / "data"))
    if not any(folder.glob("t10k-images-idx3-ubyte*")):
        pytest.skip(f"no MNIST in {folder}; name its folder in DIGITLAB_DATA")
    return folder


@contextmanager
def make_sweeper(*overrides: str) -> Iterator[ResumableSweeper]:
    """Make the sweeper of a command line with -m as Hydra does."""
    with initialize_config_dir(str(schema.CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        command = [*overrides, "hydra.mode=MULTIRUN"]
        config = loader.load_configuration("config", command, run_mode=RunMode.MULTIRUN)
        # Hydra executes plugin modules again, so its class is another object than the imported one.
        sweeper: Any = Plugins.instance().instantiate_sweeper(
            hydra_context=HydraContext(config_loader=loader, callbacks=Callbacks()),
            task_function=app.run_job,
            config=config,
        )
        yield sweeper


def plan_jobs(folder: Path, **jobs: str) -> None:
    """Write the plan of a sweep whose jobs have these names and overrides."""
    planned = [Job(name, line.split(), OmegaConf.create(), name) for name, line in jobs.items()]
    extend_plan(folder, planned, force=False)


def remove_hydra_settings(cfg: DictConfig) -> DictConfig:
    """Return the configuration of a job without `hydra`, as its task receives it."""
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def compose(*command: str) -> list[DictConfig]:
    """Compose and check the jobs of a command line; returns their settings without `hydra`."""
    is_sweep = "-m" in command or any(word.startswith("sweep=") for word in command)
    if not is_sweep:
        return [app.compose_config(command)]
    overrides = [word for word in command if word != "-m"]
    with make_sweeper(*overrides) as sweeper:
        assert sweeper.config is not None
        jobs = sweeper.plan(list(sweeper.config.hydra.overrides.task))
    return [remove_hydra_settings(job.cfg) for job in jobs]


def error_message(*command: str) -> str:
    """Return what main() prints for a command line that is refused before any job starts."""
    with pytest.raises(
        (HydraException, OmegaConfBaseException, YAMLError, ValueError, OSError)
    ) as caught:
        compose(*command)
    return errors.format_error(caught.value, list(command))


def write_rmsprop(folder: Path) -> str:
    """Write a YAML for torch.optim's RMSprop; returns the override that lets Hydra find it."""
    (folder / "optimizer").mkdir(parents=True, exist_ok=True)
    (folder / "optimizer" / "rmsprop_tested.yaml").write_text(
        "name: rmsprop\nlr: 0.001\nalpha: 0.9\n"
    )
    return f"hydra.searchpath=[file://{folder}]"


def run_in_process(command: list[str], directory: Path) -> dict[str, Any]:
    """Run the experiment of a command line in this process; returns its results.json."""
    (cfg,) = compose(*command)
    run_experiment(cfg, directory)
    return load_results(directory)


@pytest.fixture(scope="session")
def kmeans_run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run `model=kmeans init=digit` with `overrides`, once; tests may copy it, not change it."""
    directory = tmp_path_factory.mktemp("kmeans")
    run_in_process(["model=kmeans", "init=digit", *small_run(tiny, 3)], directory)
    return directory


def copy_run(run: Path, directory: Path) -> Path:
    """Copy the files of a run into a directory; returns that."""
    return Path(shutil.copytree(run, directory, dirs_exist_ok=True))


def load_results(directory: Path) -> dict[str, Any]:
    """Load results.json of a run, which must exist."""
    content = json.loads((directory / "results.json").read_text())
    assert isinstance(content, dict)
    return content


def find_jobs(sweep_dir: Path) -> dict[str, Path]:
    """Find the directories of a sweep's jobs that have results, by run id."""
    return {path.parent.name: path.parent for path in sweep_dir.glob("*/results.json")}


def read_outputs(directory: Path) -> dict[Path, bytes]:
    """Read all files that runs and sweeps write, except their logs, plan and report."""
    endings = ("results.json", ".ckpt", ".png", ".csv", ".npy")
    paths = [path for path in directory.rglob("*") if path.name.endswith(endings)]
    return {path: path.read_bytes() for path in paths}


@pytest.fixture
def no_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a mirror that refuses connections: nothing listens on port 1 of this machine."""
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", ["http://127.0.0.1:1/"])


def enable_interrupts() -> None:
    """Let a process receive Ctrl-C, which shells ignore in background processes such as tests."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


RunTrain = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_train_process(tmp_path: Path) -> RunTrain:
    """Return a function that runs `python train.py ...` as a user does, in an empty folder."""

    def run(*command: str, threads: int | None = None) -> "subprocess.CompletedProcess[str]":
        environment = dict(os.environ)
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        return subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run


@pytest.fixture(scope="session")
def forked_process() -> Any:
    """Return a Process class whose processes fork from one with the slow imports done."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([forked.__name__])
    # The server starts with the first process, and imports from the working directory.
    with chdir(ROOT):
        first = context.Process(target=int)
        first.start()
        first.join()
    return context.Process


RunScript = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_script(
    forked_process: Any, classifiers: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> RunScript:
    """Return a function that runs a script of this project in tmp_path, as a forked process."""

    def run(script: str, *words: object) -> "subprocess.CompletedProcess[str]":
        command = [str(word) for word in words]
        folder = tmp_path_factory.mktemp("output")
        out, err = folder / "out", folder / "err"
        process = forked_process(
            target=forked.run_script,
            args=(ROOT / script, command, tmp_path, out, err),
            kwargs={"cache": classifiers},
        )
        process.start()
        process.join(240)
        # This has no effect on a process that has ended.
        process.kill()
        assert process.exitcode is not None, f"still running after four minutes: {command}"
        return subprocess.CompletedProcess(
            command, process.exitcode, out.read_text(), err.read_text()
        )

    return run


@pytest.fixture
def run_train(run_script: RunScript) -> RunTrain:
    """Return a function like `run_train_process`, but seconds faster.

    Workers of launchers are started by a real process, as a user's are.
    """
    return partial(run_script, "train.py")


StartTrain = Callable[..., Any]


@pytest.fixture
def start_train(forked_process: Any, classifiers: Path, tmp_path: Path) -> StartTrain:
    """Return a function that starts `python train.py ...` in tmp_path as a forked process.

    What the process prints is in the file `output` there.
    """

    def start(command: list[str], max_file_size: int = -1) -> Any:
        output = tmp_path / "output"
        process = forked_process(
            target=forked.run_script,
            args=(ROOT / "train.py", command, tmp_path, output, output),
            kwargs={"cache": classifiers, "max_file_size": max_file_size},
        )
        process.start()
        return process

    return start
