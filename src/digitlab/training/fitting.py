"""Build the model of a run and fit it."""

import logging
import signal
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger
from torch.multiprocessing.spawn import ProcessRaisedException

from digitlab.config.validation import trainer_options
from digitlab.data.images import Split
from digitlab.data.loaders import MNISTData
from digitlab.models import checkpoints
from digitlab.models.base import find_objective, trait
from digitlab.registry import MODELS
from digitlab.runs.provenance import determining_values, flatten
from digitlab.runs.results import Objective
from digitlab.runtime import signals
from digitlab.runtime.devices import has_native_bfloat16, require_devices
from digitlab.runtime.threads import busy_cores_warning, keep_freed_memory
from digitlab.runtime.trainer import hidden_variables, make_profiler, make_trainer
from digitlab.training.callbacks import (
    DestroyProcessGroup,
    Diverged,
    DivergenceCheck,
    EpochSeed,
    LoadPlugins,
    Progress,
    Record,
    TensorBoard,
    best_row,
    write_rows,
)
from digitlab.training.own_callbacks import make_callbacks
from digitlab.training.pruning import Pruning
from hydra_plugins.resumable_sweeper import current_trial

log = logging.getLogger(__name__)


def build_model(config: dict[str, Any], data: Split) -> LightningModule:
    """Build the model from plain values, for the shape and the classes of the data."""
    return checkpoints.build(MODELS.find(config["model"]["name"]), model_values(config, data))


def model_values(config: dict[str, Any], data: Split) -> dict[str, Any]:
    """The values that the model's constructor gets, or that a checkpoint keeps for it."""
    values = {key: value for key, value in config["model"].items() if key != "name"}
    common = {key: config[key] for key in ("optimizer", "scheduler", "seed")}
    return values | common | {"image_shape": data.image_shape, "n_classes": len(data.classes)}


def fit(
    model: LightningModule,
    data: Split,
    config: dict[str, Any],
    directory: Path,
    results: dict[str, Any],
    loggers: Sequence[Logger] = (),
) -> list[dict[str, float]]:
    """Train to the last epoch, starting from last.ckpt if it exists.

    Args:
        model: The model to train.
        data: The split; the test images are not used.
        config: The configuration as plain values.
        directory: The run's directory, for checkpoints, metrics.csv and events.
        results: The content of results.json, updated in place.
        loggers: What else logs the training.

    Returns:
        The rows of metrics.csv, one per epoch.

    Raises:
        Diverged: If a loss becomes NaN or infinite.
        ValueError: If the machine lacks the configured devices.
    """
    require_devices(config["trainer"]["accelerator"], config["trainer"]["devices"])
    trainer = make_fit_trainer(model, data, config, directory, results, loggers)
    batches = MNISTData(
        data,
        batch_size=config["data"]["batch_size"],
        block=trait(model, "block_steps"),
        seed=config["seed"],
    )
    last = directory / "checkpoints" / "last.ckpt"
    if last.is_file():
        log.info("Resuming from %s", last)
    record_machine(trainer, results)
    keep_freed_memory()
    if trainer.strategy.root_device.type == "cpu" and (warning := busy_cores_warning()):
        # Only logged: it concerns the machine, not the result.
        log.warning("WARNING: %s", warning)
    start = time.perf_counter()
    try:
        run_trainer(trainer, model, batches, last if last.is_file() else None)
    finally:
        results["fit_seconds"] += time.perf_counter() - start
        rows = record_history(model, directory, results)
    return rows


def make_fit_trainer(
    model: LightningModule,
    data: Split,
    config: dict[str, Any],
    directory: Path,
    results: dict[str, Any],
    loggers: Sequence[Logger],
) -> Trainer:
    """Make the Trainer of a run, with our callbacks and the user's; see `fit`."""
    options, trial = config["trainer"], current_trial()
    passed, entry = trainer_options(options), results["objective"]
    if not len(data.val.labels):
        passed["limit_val_batches"] = 0
    if trait(model, "block_steps"):
        # An epoch has few blocks, fewer than the 50 items after which Lightning logs.
        passed.setdefault("log_every_n_steps", 1)
    if passed.get("profiler"):
        passed["profiler"] = make_profiler(passed["profiler"], directory)
    objective = Objective(entry["name"], entry["direction"])
    own_callbacks = make_callbacks(options.get("callbacks", {}), objective)
    return make_trainer(
        directory / "checkpoints",
        max_epochs=options["max_epochs"],
        accelerator=options["accelerator"],
        devices=options["devices"],
        # Spawned processes get their work by pickle. Launched ones would run this command again,
        # including a whole sweep.
        strategy="ddp_spawn" if options["devices"] > 1 else "auto",
        precision=choose_precision(options["precision"], options["accelerator"], model),
        callbacks=[
            LoadPlugins(),
            EpochSeed(config["seed"]),
            DivergenceCheck(),
            Record(directory, results, (config["model"]["name"], model_values(config, data))),
            Progress(results["baselines"], directory),
            TensorBoard(directory, results["baselines"], flatten(determining_values(config))),
            *own_callbacks,
            *([] if trial is None else [Pruning(trial)]),
            DestroyProcessGroup(),
        ],
        plugins=[checkpoints.AtomicCheckpointIO()],
        # Callbacks such as LearningRateMonitor demand a logger.
        loggers=loggers or [DummyLogger() for _ in own_callbacks[:1]],
        num_sanity_val_steps=0,
        **passed,
    )


def run_trainer(
    trainer: Trainer, model: LightningModule, batches: MNISTData, checkpoint: Path | None
) -> None:
    """Train from a checkpoint, or from the start; a failed process of several fails here."""
    # A process that waits for the processes it spawned reaches no safe point.
    waiting = signals.immediate() if trainer.num_devices > 1 else nullcontext()
    try:
        with hidden_variables(), waiting, warnings.catch_warnings():
            # Metrics by epoch are logged in short epochs as well.
            warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
            trainer.fit(model, batches, ckpt_path=checkpoint, weights_only=True)
    except ProcessRaisedException as error:
        # The error holds the traceback of a spawned process as text.
        last_line = str(error).strip().splitlines()[-1]
        log.debug("%s", error)
        kind = Diverged if "Diverged: " in last_line else RuntimeError
        raise kind(last_line.partition(": ")[2] or last_line) from None
    finally:
        if trainer.strategy.launcher is not None:
            # Spawned processes handle SIGTERM at a safe point, and wait for one another there.
            trainer.strategy.launcher.kill(signal.SIGKILL)


def record_history(
    model: LightningModule, directory: Path, results: dict[str, Any]
) -> list[dict[str, float]]:
    """Write metrics.csv and the number of epochs; returns the rows, none before the first epoch.

    They are read back from the checkpoint, because DDP trains in other processes.
    """
    last = directory / "checkpoints" / "last.ckpt"
    if not last.is_file():
        return []
    rows = checkpoints.read_rows(last)
    results["epochs"], results["steps"] = int(rows[-1]["epoch"]), int(rows[-1]["steps"])
    results["best_epoch"] = int(best_row(rows, find_objective(model))["epoch"])
    write_rows(directory / "metrics.csv", rows)
    return rows


def record_machine(trainer: Trainer, results: dict[str, Any]) -> None:
    """Record the device, precision and threads; warn if the run started with others."""
    device = trainer.strategy.root_device
    machine = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": trainer.precision,
        "threads": torch.get_num_threads(),
    }
    earlier = results.get("machine")
    if earlier not in (None, machine):
        details = ", ".join(f"{key} {earlier.get(key)}" for key in machine)
        results["warnings"].append(
            f"Started on different hardware ({details}): the last digits may differ."
        )
    results["machine"] = machine


def choose_precision(requested: str, accelerator: str, model: LightningModule) -> Any:
    """Resolve `auto`: bfloat16 if the model benefits and the hardware computes in it."""
    if requested != "auto":
        return requested
    return "bf16-mixed" if trait(model, "bf16") and has_native_bfloat16(accelerator) else "32-true"
