"""Callbacks of a run: metrics, checkpoints, progress, TensorBoard, and a stop on divergence."""

import logging
import math
import sys
import time
from multiprocessing import current_process
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from matplotlib.figure import Figure
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import distributed
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from torchvision.utils import make_grid
from tqdm import tqdm

from digitlab import figures, plugins
from digitlab.data.loaders import Block
from digitlab.formatting import format_loss
from digitlab.models.base import find_objective, trait
from digitlab.runs.files import write_csv, write_json
from digitlab.runs.results import LOSS, Objective, find_unbeaten
from digitlab.runtime.seeds import Stream, seed_globally
from digitlab.runtime.watching import watched
from digitlab.training.event_files import open_writer

log = logging.getLogger(__name__)


class Diverged(ArithmeticError):
    """Raised when the loss becomes NaN or infinite."""


def epoch_metrics(trainer: Trainer) -> dict[str, float]:
    """Return all that the model logged by epoch: train/... first, then val/..., then the others.

    Under DDP every process must call it: it returns the mean over processes.
    """
    metrics = trainer.callback_metrics
    values = {}
    for name in sorted(metrics, key=lambda name: (_part_order(name), name)):
        # Of a name that is logged by step and by epoch, Lightning keeps two more, with a suffix.
        stem, _, suffix = name.rpartition("_")
        if stem in metrics and suffix in ("step", "epoch"):
            continue
        value = metrics[name].detach().clone()
        if trainer.world_size > 1:
            value = trainer.strategy.reduce(value, reduce_op="mean")
        values[name] = float(value)
    return values


def _part_order(name: str) -> int:
    """0 for training metrics, 1 for validation metrics, 2 for others."""
    for order, part in enumerate(("train", "val")):
        if name.startswith(part):
            return order
    return 2


def logged(row: dict[str, float]) -> dict[str, float]:
    """A row of metrics.csv without the columns that the model did not log."""
    return {name: value for name, value in row.items() if name not in ("epoch", "steps")}


class EpochCallback(Callback):
    """A callback that `Record` calls with the metrics of each epoch, before it saves them.

    Lightning itself would call some callbacks before the model's own on_train_epoch_end, which may
    log as well.
    """

    def on_epoch_row(
        self, trainer: Trainer, module: LightningModule, row: dict[str, float]
    ) -> None:
        """Act on the epoch's row of metrics.csv."""


class DivergenceCheck(EpochCallback):
    """Stop as soon as a loss is not finite.

    Reading the loss waits for the device, so on a GPU only about every 50th minibatch is checked.
    """

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Check the loss that the step returned, if it returned one."""
        is_due = module.device.type == "cpu" or index % max(1, 50 // minibatches(batch)) == 0
        if is_due and outputs and "loss" in outputs:
            self._check("train/loss", float(outputs["loss"]), trainer, module)

    def on_epoch_row(
        self, trainer: Trainer, module: LightningModule, row: dict[str, float]
    ) -> None:
        """Check the epoch's losses and its objective before they are recorded."""
        objective = find_objective(module)
        checked = (LOSS.on("train"), LOSS.name, objective.on("train"), objective.name)
        for name in dict.fromkeys(checked):
            if name in row:
                self._check(name, row[name], trainer, module)

    def _check(self, name: str, value: float, trainer: Trainer, module: LightningModule) -> None:
        if not math.isfinite(value):
            epoch, remedy = trainer.current_epoch + 1, trait(module, "steadier_steps")()
            raise Diverged(f"{name} is {value} in epoch {epoch}: {remedy}")


def minibatches(item: Any) -> int:
    """The number of minibatches in an item of the training loader."""
    return item.steps if isinstance(item, Block) else 1


class LoadPlugins(Callback):
    """Load the plugins of this process in those that DDP starts."""

    def __init__(self) -> None:
        self.names = list(plugins.digests())

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Load them before the model's own setup."""
        plugins.load(self.names)


class EpochSeed(Callback):
    """Seed the global generators for each epoch, so that a resumed run equals an uninterrupted one.

    Layers such as dropout draw from them; each process of DDP draws other numbers.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Seed by the epoch and the process."""
        seed_globally(self.seed, Stream.EPOCH, trainer.current_epoch, trainer.global_rank)


class DestroyProcessGroup(Callback):
    """Destroy DDP's process group before the process ends.

    Gloo's threads may abort a process that exits while they run
    (https://docs.pytorch.org/docs/stable/distributed.html#shutdown).
    """

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Destroy the group after the last communication."""
        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()


def best_row(rows: list[dict[str, float]], objective: Objective = LOSS) -> dict[str, float]:
    """Return the row with the best objective; the last of equal ones, or of rows without it."""
    scored = [row for row in rows if objective.name in row] or rows[-1:]
    return min(reversed(scored), key=lambda row: objective.cost(row.get(objective.name, 0.0)))


def require_objective(row: dict[str, float], objective: Objective) -> None:
    """Raise ValueError if an epoch's metrics on held-out images lack the objective."""
    held_out = [name for name in row if name.startswith("val/")]
    if held_out and objective.name.startswith("val/") and objective.name not in row:
        raise ValueError(
            f"objective {objective.name}: the model logs {', '.join(held_out)}; log it in"
            " validation_step, or set `objective` of the model to one of these"
        )


def write_rows(path: Path, rows: list[dict[str, float]]) -> None:
    """Write metrics.csv: a column for every metric that any epoch has, empty where it is absent."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    write_csv(path, columns, [[row.get(name, "") for name in columns] for row in rows])


class Record(Checkpoint):
    """Write metrics.csv, results.json and the checkpoints after each epoch.

    best.ckpt is written when the objective is the best so far, last.ckpt always.
    The rows are part of the checkpoint, so a resumed run continues its table. results.json gets the
    epochs and the time so far, because a killed process cannot write them later.

    Args:
        directory: The run's directory.
        results: The content of results.json so far.
        model: What `checkpoints.load_model` rebuilds the model from: its registered name and the
            values for its constructor.
    """

    def __init__(
        self, directory: Path, results: dict[str, Any], model: tuple[str, dict[str, Any]]
    ) -> None:
        self.directory, self.results, self.model = directory, results, model
        self.start = time.perf_counter()
        self.rows: list[dict[str, float]] = []
        # Whether a callback has stopped the training.
        self.stopped = False

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Do not train on a run that was stopped early."""
        trainer.should_stop = self.stopped

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Record the epoch; all processes take part in saving, the first one writes."""
        row: dict[str, float] = {"epoch": trainer.current_epoch + 1, "steps": trainer.global_step}
        row |= epoch_metrics(trainer)
        objective = find_objective(module)
        require_objective(row, objective)
        callbacks: Any = getattr(trainer, "callbacks")  # noqa: B009
        for callback in callbacks:
            if isinstance(callback, EpochCallback):
                callback.on_epoch_row(trainer, module, row)
        self.rows.append(row)
        self.stopped = trainer.should_stop
        folder = self.directory / "checkpoints"
        if best_row(self.rows, objective) is row:
            trainer.save_checkpoint(folder / "best.ckpt")
        trainer.save_checkpoint(folder / "last.ckpt")
        if trainer.is_global_zero:
            write_rows(self.directory / "metrics.csv", self.rows)
            elapsed = time.perf_counter() - self.start
            results = self.results | {"epochs": int(row["epoch"]), "steps": int(row["steps"])}
            for name in ("fit_seconds", "seconds"):
                results[name] = self.results[name] + elapsed
            write_json(self.directory / "results.json", results)

    def on_save_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the model's name and values, so that the file loads without a configuration."""
        checkpoint["model"], checkpoint["hyper_parameters"] = self.model

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far."""
        return {"rows": self.rows, "stopped": self.stopped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from saved rows."""
        self.rows, self.stopped = state["rows"], state.get("stopped", False)


class Progress(EpochCallback):
    """Log a line for each epoch; on a terminal, show a bar over all of training below them.

    Whoever watches the training shows it instead of the bar.
    """

    def __init__(self, baselines: dict[str, float], directory: Path) -> None:
        self.baselines, self.directory = baselines, directory
        self.watched = watched()
        self.bar: Any = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Open the bar; tqdm hides it if stderr is not a terminal."""
        if not trainer.is_global_zero:
            return
        if trainer.world_size > 1:
            self._configure_logging()
        data: Any = getattr(trainer, "datamodule")  # noqa: B009
        steps, epochs = data.steps, trainer.max_epochs or 0
        # None lets tqdm decide by the terminal. The workers of joblib would share one line of it.
        is_hidden = self.watched is not None or current_process().name.startswith("Loky")
        disable = True if is_hidden else None
        if self.watched is not None:
            self.watched.total_steps, self.watched.epochs = steps * epochs, epochs
            self.watched.steps = steps * trainer.current_epoch
            self.watched.epoch = trainer.current_epoch
            self.watched.measure = find_objective(module).name
        # tqdm's own lock is a semaphore, and Python warns of one that a killed process leaves.
        tqdm.set_lock(RLock())
        self.bar = tqdm(
            total=steps * epochs,
            initial=steps * trainer.current_epoch,
            unit="step",
            disable=disable,
            leave=False,
            desc="training",
        )

    def _configure_logging(self) -> None:
        """Log to stdout and train.log in a process that DDP spawned, without Hydra's logging."""
        root = logging.getLogger()
        if root.handlers:
            return
        # As in `app.run_job`: the run reports a full disk once.
        logging.raiseExceptions = False
        root.setLevel(logging.INFO)
        console = logging.StreamHandler(sys.stdout)
        console.setFormatter(logging.Formatter("%(message)s"))
        file = logging.StreamHandler((self.directory / "train.log").open("a"))
        file.setFormatter(logging.Formatter("[%(asctime)s][%(levelname)s] %(message)s"))
        root.addHandler(console)
        root.addHandler(file)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Advance the bar by the minibatches of the item."""
        if self.bar is not None and not self.bar.disable:
            self.bar.update(minibatches(batch))
        if self.watched is not None:
            self.watched.steps += minibatches(batch)

    def on_epoch_row(
        self, trainer: Trainer, module: LightningModule, row: dict[str, float]
    ) -> None:
        """Log the epoch's metrics, with the first baseline if the objective is no better."""
        if self.bar is None:
            return
        metrics = logged(row)
        summary = "  ".join(f"{name} {format_loss(value)}" for name, value in metrics.items())
        objective = find_objective(module)
        hint = self._compare(metrics, objective)
        if self.watched is not None:
            self.watched.epoch = trainer.current_epoch + 1
            self.watched.value = metrics.get(objective.name, metrics.get(objective.on("train")))
        # The next update draws the bar again, below the line.
        self.bar.clear()
        log.info(
            "epoch %*d/%d  %s%s",
            len(str(trainer.max_epochs)),
            trainer.current_epoch + 1,
            trainer.max_epochs,
            summary,
            hint,
        )

    def _compare(self, metrics: dict[str, float], objective: Objective) -> str:
        """Say that an epoch is no better than the first baseline, if so."""
        names = (objective.on("train"), objective.name)
        values = [metrics[name] for name in names if name in metrics]
        best = min(values, key=objective.cost, default=None)
        if best is None or not (name := find_unbeaten(best, self.baselines, objective)):
            return ""
        words = name.replace("_", " ")
        return f"  (no better than the {words}, {format_loss(self.baselines[name])})"

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Close the bar, also after an error."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class TensorBoard(EpochCallback):
    """Log the scalars, the baselines and the model's pictures of each epoch to TensorBoard."""

    def __init__(
        self, directory: Path, baselines: dict[str, float], settings: dict[str, Any]
    ) -> None:
        self.directory, self.baselines, self.settings = directory, baselines, settings
        self.writer: SummaryWriter | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Open the events file; discard events that a resumed run logged after its checkpoint."""
        if not trainer.is_global_zero:
            return
        purge = trainer.current_epoch + 1 if trainer.current_epoch else None
        self.writer = open_writer(self.directory, purge_step=purge)
        if self.baselines:
            # The same in every run, so that one chart shows all runs.
            objective = find_objective(module)
            chart = ["Multiline", [objective.on("train"), objective.name, "baseline/.*"]]
            layout = {objective.measure: {"compared with the baselines": chart}}
            self.writer.add_custom_scalars(layout)
        # A session without an experiment: TensorBoard's HParams page then takes its columns from
        # all runs and the metrics from their scalars. With an experiment in each run, as
        # add_hparams writes it, the page would show only the first run's columns.
        settings = {}
        for key, value in self.settings.items():
            settings[key] = value if isinstance(value, bool | int | float | str) else str(value)
        write_summary(self.writer, hparams(settings, {})[1])
        if not trainer.current_epoch:
            self._log_epoch(0, module)

    def _log_epoch(self, epoch: int, module: Any) -> None:
        assert self.writer is not None
        for name, value in self.baselines.items():
            self.writer.add_scalar(f"baseline/{name}", value, epoch)
        for name, picture in trait(module, "pictures")().items():
            tag = f"epochs/{name}"
            if isinstance(picture, Figure):
                self.writer.add_image(tag, figures.render(picture), epoch, dataformats="HWC")
            else:
                grid = make_grid(picture, nrow=10, padding=1, pad_value=0.3)
                self.writer.add_image(tag, grid, epoch)

    @torch.no_grad()
    def on_epoch_row(
        self, trainer: Trainer, module: LightningModule, row: dict[str, float]
    ) -> None:
        """Log the epoch's metrics, learning rate, baselines and pictures."""
        if self.writer is None:
            return
        epoch = trainer.current_epoch + 1
        for name, value in logged(row).items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.add_scalar("lr", trainer.optimizers[0].param_groups[0]["lr"], epoch)
        self._log_epoch(epoch, module)

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        """Mark the run as failed on the HParams page, unless it is interrupted and resumable."""
        if self.writer is not None and isinstance(exception, Exception):
            # hparams makes the summary of a successful end; its status is replaced.
            _, _, end = hparams({}, {})
            plugin_data = end.value[0].metadata.plugin_data
            content = HParamsPluginData.FromString(plugin_data.content)
            content.session_end_info.status = Status.Value("STATUS_FAILURE")
            plugin_data.content = content.SerializeToString()
            write_summary(self.writer, end)

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Close the events file, also after an error."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None


def write_summary(writer: SummaryWriter, summary: Any, step: int | None = None) -> None:
    """Write a summary message through the file writer of an open SummaryWriter."""
    # torch infers None as the type of file_writer.
    file_writer: Any = writer.file_writer
    file_writer.add_summary(summary, step)
