"""Tiny data made on the spot, and the two ways to run an experiment: as a process and in this one."""

import gzip
import json
import multiprocessing
import os
import resource
import runpy
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault(
        "OMP_NUM_THREADS", "1"
    )  # the workers share the cores; read when torch is imported

import numpy as np
import pytest
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from digitlab import app
from digitlab.config import schema
from digitlab.models import autoencoder, digit_classifier
from digitlab.runtime import signals
from digitlab.training.experiment import run_experiment
from hydra_plugins.resumable_sweeper.jobs import Job, extend_plan
from hydra_plugins.resumable_sweeper.sweeper import ResumableSweeper

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes minutes, so that the workers end together."""
    items.sort(
        key=lambda item: [item.get_closest_marker(name) is None for name in ("long", "slow")]
    )


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write a uint8 array in MNIST's format."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def digits(number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of ten kinds that k-means can tell apart: a bright 8 x 8 square in a place of its own, with noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(number) % 10
    images = rng.integers(0, 40, (number, 28, 28))
    for image, label in zip(images, labels, strict=True):
        row, column = 9 * (label // 3) % 27, 9 * (label % 3)
        image[row : row + 8, column : column + 8] += 150 + 6 * label
    return images.astype(np.uint8), labels


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 600 training and 100 test images in IDX files."""
    folder = tmp_path_factory.mktemp("tiny")
    for part, number, seed in (("train", 600, 0), ("t10k", 100, 1)):
        images, labels = digits(number, seed)
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte", labels)
    return folder


@pytest.fixture(scope="session")
def dark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Such a folder of images whose pixels are 0 and 1, which should have been 0 and 255."""
    folder = tmp_path_factory.mktemp("dark")
    for part, number, seed in (("train", 600, 0), ("t10k", 100, 1)):
        images, labels = digits(number, seed)
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images > 25)
        write_idx(folder / f"{part}-labels-idx1-ubyte", labels)
    return folder


@pytest.fixture
def words(tiny: Path) -> list[str]:
    """The part of a command line that makes it small."""
    sizes = [
        "data.val_size=100",
        "data.batch_size=20",
        "trainer.max_epochs=3",
        "trainer.accelerator=cpu",
    ]
    return [f"data.root={tiny}", "data.verify=false", "data.source=files", *sizes]


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Handlers as a new process in the foreground has them, and after a test as they were."""
    before = {number: signal.getsignal(number) for number in signals.ENDING}
    for number in before:
        signal.signal(
            number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        )
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def be_quick(patch: pytest.MonkeyPatch) -> None:
    """Have the judge trained quickly, and few samples for it to see."""
    patch.setattr(digit_classifier, "EPOCHS", 30)  # of five minibatches each
    patch.setattr(digit_classifier, "STEPS", 0)
    patch.setattr(autoencoder, "SCORED_SAMPLES", 200)


@pytest.fixture(scope="session", autouse=True)
def quick_judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    """One such judge for all tests in this process."""
    with pytest.MonkeyPatch.context() as patch:
        be_quick(patch)
        patch.setattr(digit_classifier, "CACHE", tmp_path_factory.mktemp("judge"))
        yield patch


@pytest.fixture
def full_judge(quick_judge: pytest.MonkeyPatch) -> Iterator[None]:
    """The judge and the number of samples that users get."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digit_classifier, "EPOCHS", 4)
        patch.setattr(digit_classifier, "STEPS", 300)
        patch.setattr(autoencoder, "SCORED_SAMPLES", 10_000)
        yield


@pytest.fixture(scope="session")
def mnist() -> Path:
    """The folder of the real MNIST; a test that asks for it is skipped where there is none."""
    folder = Path(os.environ.get("DIGITLAB_DATA", ROOT / "data"))
    if not any(folder.glob("t10k-images-idx3-ubyte*")):
        pytest.skip(f"no MNIST in {folder}; name its folder in DIGITLAB_DATA")
    return folder


@contextmanager
def sweeper(*overrides: str) -> Iterator[ResumableSweeper]:
    """The sweeper of a command line with -m, as Hydra makes it."""
    with initialize_config_dir(str(schema.CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        words = [*overrides, "hydra.mode=MULTIRUN"]
        config = loader.load_configuration("config", words, run_mode=RunMode.MULTIRUN)
        # Hydra executes plugin modules again, so its class is another object than the imported one.
        made: Any = Plugins.instance().instantiate_sweeper(
            hydra_context=HydraContext(config_loader=loader, callbacks=Callbacks()),
            task_function=app.run_job,
            config=config,
        )
        yield made


def plan_jobs(folder: Path, **jobs: str) -> None:
    """Write the plan of a sweep with these jobs, by name and overrides."""
    planned = [Job(name, line.split(), OmegaConf.create(), name) for name, line in jobs.items()]
    extend_plan(folder, planned, force=False)


def without_hydra(cfg: DictConfig) -> DictConfig:
    """A job's configuration as its task gets it."""
    return OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])


def compose(*words: str) -> list[DictConfig]:
    """The checked configurations of the jobs of a command line, without `hydra`."""
    if "-m" not in words and not any(word.startswith("sweep=") for word in words):
        return [app.compose_config(words)]
    overrides = [word for word in words if word != "-m"]
    with sweeper(*overrides) as planner:
        assert planner.config is not None
        jobs = planner.plan(list(planner.config.hydra.overrides.task))
    return [without_hydra(job.cfg) for job in jobs]


def run_here(words: list[str], directory: Path) -> dict[str, Any]:
    """Run the experiment of a command line in this process; returns its results.json."""
    (cfg,) = compose(*words)
    run_experiment(cfg, directory)
    return results(directory)


def results(directory: Path) -> dict[str, Any]:
    """results.json of a run."""
    content = json.loads((directory / "results.json").read_text())
    assert isinstance(content, dict)
    return content


@pytest.fixture
def no_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror that refuses connections: nothing listens on port 1 of this machine."""
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", ["http://127.0.0.1:1/"])


def heed() -> None:
    """Let a process hear of Ctrl-C although the tests run in the background, where shells have it ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


Lab = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def shell(tmp_path: Path) -> Lab:
    """Run `python train.py ...` as a user does, in an empty folder."""

    def call(*words: str, threads: int | None = None) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(ROOT / "train.py"), *words]
        env = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
        return subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240
        )

    return call


def enter(command: list[str], folder: Path, out: Path, err: Path, largest: int) -> None:
    """Be train.py, given these words in this folder, with files of at most so many bytes (-1: of any size)."""
    os.chdir(folder)
    be_quick(pytest.MonkeyPatch())
    for number, path in ((1, out), (2, err)):
        with path.open("a") as file:
            os.dup2(file.fileno(), number)
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # shells have it ignored in the background
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, -1))
    sys.argv = ["train.py", *command]
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


@pytest.fixture(scope="session")
def forks() -> Any:
    """Begins processes as forks of one that has imported what takes seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["digitlab.training.experiment", "lightning.pytorch", "digitlab.models.autoencoder"]
    )
    return context.Process


@pytest.fixture
def lab(forks: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """As `shell`, but seconds sooner; for commands that start no processes of their own."""

    def call(*words: str) -> "subprocess.CompletedProcess[str]":
        folder = tmp_path_factory.mktemp("told")
        out, err = folder / "out", folder / "err"
        process = forks(target=enter, args=(list(words), tmp_path, out, err, -1))
        process.start()
        process.join(240)
        process.kill()  # nothing to one that has ended
        assert process.exitcode is not None, f"still at work after four minutes: {words}"
        return subprocess.CompletedProcess(
            words, process.exitcode, out.read_text(), err.read_text()
        )

    return call


Fork = Callable[..., Any]


@pytest.fixture
def fork(forks: Any, tmp_path: Path) -> Fork:
    """Begin `python train.py ...` in tmp_path as such a fork; what it prints is in the file `told` there."""

    def begin(command: list[str], largest: int = -1) -> Any:
        told = tmp_path / "told"
        process = forks(target=enter, args=(command, tmp_path, told, told, largest))
        process.start()
        return process

    return begin
