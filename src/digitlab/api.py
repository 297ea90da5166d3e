"""digitlab from Python: a run in this process, a trained model, a table of runs.

Imports torch only when a run starts or a model is loaded.
"""

import logging
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobRuntime
from hydra.types import RunMode
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf, read_write

from digitlab import RunFailed, app
from digitlab.config import schema
from digitlab.config.errors import format_error, is_mistake
from digitlab.runs.results import best_checkpoint, read_results, selection_score

if TYPE_CHECKING:
    import pandas as pd
    from lightning.pytorch import LightningModule

log = logging.getLogger(__name__)
# The settings of Hydra that a run in this process reads.
HYDRA_KEYS = ("hydra.run.dir", "hydra.searchpath")
# The working directory, torch's threads and Hydra's state belong to the process.
_one_run = threading.RLock()


@dataclass(frozen=True)
class Results:
    """The results of a completed run, as in its results.json."""

    directory: Path
    run_id: str
    status: str
    model: str
    seed: int
    # The metric that selects among runs: of digitlab's models val/loss, or train/loss without
    # held-out images.
    objective_name: str
    objective: float
    metrics: dict[str, float]
    baselines: dict[str, float]
    epochs: int
    best_epoch: int
    seconds: float
    warnings: list[str]
    config: dict[str, Any] = field(repr=False)


def run(overrides: Sequence[str] = (), directory: str | os.PathLike[str] | None = None) -> Results:
    """Run one experiment in this process, as the command does with the same overrides.

    Nothing is printed but warnings: set up `logging` to see the lines of each epoch. Runs of other
    threads wait for one another.

    Args:
        overrides: What follows the command, as `["model=kmeans", "init=digit"]`.
        directory: The run's directory; by default a new one in outputs/runs.

    Raises:
        ValueError: A mistake, with the message of the command (exit code 2).
        RunFailed: The run failed or diverged (exit code 1); `Busy` if another process works on it.
        KeyboardInterrupt: A signal ended the run, which `["resume=DIRECTORY"]` continues.
    """
    if isinstance(overrides, str):
        raise ValueError(f"{overrides}: must be a list, as {overrides.split()}")
    words = [str(word) for word in overrides]
    with _one_run, _hydra_state():
        try:
            config = _compose_run(words, directory)
            app.prepare_run(config)
            place = Path(config.hydra.run.dir).absolute()
            cfg = _write_settings(config, place)
            train_log = _TrainLog(place / "train.log")
        except Exception as error:
            if not is_mistake(error):
                raise
            raise ValueError(format_error(error, words)) from None
        from lightning.pytorch.utilities.seed import isolate_rng

        try:
            with _logging_to(train_log), isolate_rng():
                app.run_alone(cfg, place)
        except KeyboardInterrupt as stop:
            if stop.args:
                log.warning("Continue with: digitlab.run(%s)", [f"resume={place}"])
            raise
    return _read(place)


def load_model(run: str | os.PathLike[str]) -> "LightningModule":
    """Load the model of a run's best epoch, on the CPU, in evaluation mode.

    Its methods take images as NumPy arrays or tensors, (N, H, W) or (N, C, H, W), uint8 or floats
    in [0, 1].

    Args:
        run: The run's directory, or a checkpoint.

    Raises:
        ValueError: There is no checkpoint, or it is damaged or of another program.
    """
    path = Path(run)
    if path.is_dir():
        path = best_checkpoint(path)
    from digitlab.models import checkpoints

    return checkpoints.load_model(path)


def runs_table(folder: str | os.PathLike[str] = "outputs") -> "pd.DataFrame":
    """Collect the runs below a folder, a row each, with typed columns.

    Raises:
        ValueError: The folder holds no run.
    """
    from digitlab.report import table

    return table.add_types(table.collect([Path(folder)]))


def _read(directory: Path) -> Results:
    """Read the results of a completed run."""
    results = read_results(directory)
    if results is None:
        raise RunFailed(f"{directory}: results.json has disappeared")
    objective, value = selection_score(results)
    recorded = {key: value for key, value in results.items() if key in Results.__annotations__}
    return Results(
        **recorded | {"directory": directory, "objective_name": objective.name, "objective": value}
    )


@contextmanager
def _hydra_state() -> Iterator[None]:
    """Start Hydra, also inside another application of it, and leave its state as it was."""
    job, base = JobRuntime.instance(), VersionBase.instance()
    outer, cfg = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    name, version = job.get("name"), base.version_base
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(schema.CONF), job_name="train", version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = outer, cfg
        base.version_base = version
        job.set("name", name)


def _compose_run(words: list[str], directory: str | os.PathLike[str] | None) -> DictConfig:
    """Compose the configuration of a single run; with the settings of Hydra."""
    keys = [word.lstrip("+~").partition("=")[0] for word in words]
    for word, key in zip(words, keys, strict=True):
        if word.startswith("-"):
            raise ValueError(f"{word}: is an option of the command; digitlab.run takes key=value")
        if re.match("hydra[./]", key) and key not in HYDRA_KEYS:
            usable = " and ".join(HYDRA_KEYS)
            raise ValueError(f"{word}: of Hydra's settings digitlab.run reads only {usable}")
    config = compose("config", words, return_hydra_config=True)
    if config.hydra.mode == RunMode.MULTIRUN:
        raise ValueError("digitlab.run makes one run; the command `digitlab` runs sweeps")
    if config.dry_run:
        raise ValueError("dry_run=true: only the command lists what it would do; leave it out")
    if directory is not None:
        for word, key in zip(words, keys, strict=True):
            if key in ("resume", "hydra.run.dir"):
                raise ValueError(f"directory={directory}: {word} names it already; leave one out")
        config.hydra.run.dir = os.fspath(directory)
    return config


def _write_settings(config: DictConfig, directory: Path) -> DictConfig:
    """Write .hydra/ of a run as Hydra does, and announce the run; returns the run's own values."""
    with read_write(config.hydra):
        config.hydra.runtime.output_dir = str(directory)
    HydraConfig.instance().set_config(config)
    cfg = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    directory.mkdir(parents=True, exist_ok=True)
    if config.hydra.output_subdir is not None:
        folder = directory / config.hydra.output_subdir
        folder.mkdir(exist_ok=True)
        OmegaConf.save(cfg, folder / "config.yaml")
        OmegaConf.save(OmegaConf.masked_copy(config, "hydra"), folder / "hydra.yaml")
        OmegaConf.save(config.hydra.overrides.task, folder / "overrides.yaml")
    return cfg


class _TrainLog(logging.FileHandler):
    """train.log of a run."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.setFormatter(logging.Formatter("[%(asctime)s][%(levelname)s] %(message)s"))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Stay silent on a full disk, which the run itself reports once."""


class _Forward(logging.Handler):
    """Hands the records on that a logger would have handed on with its own level."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__(logger.getEffectiveLevel())
        self.parent = logger.parent

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a record to the handlers of the parent."""
        if self.parent is not None:
            self.parent.handle(record)


@contextmanager
def _logging_to(train_log: logging.Handler) -> Iterator[None]:
    """Write all that digitlab logs to a file; what else shows it is as before."""
    logger = logging.getLogger("digitlab")
    level, propagate = logger.level, logger.propagate
    handlers = [train_log, _Forward(logger)] if propagate else [train_log]
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
        train_log.close()
