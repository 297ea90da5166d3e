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

from digitlab import figures
from digitlab.formatting import format_loss
from digitlab.models.base import Model
from digitlab.runs.files import write_csv, write_json
from digitlab.runs.results import is_no_better
from digitlab.training.event_files import open_writer

log = logging.getLogger(__name__)


class Diverged(ArithmeticError):
    """Raised when the loss becomes NaN or infinite."""


def epoch_losses(trainer: Trainer) -> dict[str, float]:
    """Return the epoch's mean training loss, and the validation loss if images are held out."""
    metrics = trainer.callback_metrics
    return {name: float(metrics[name]) for name in ("train/loss", "val/loss") if name in metrics}


class DivergenceCheck(Callback):
    """Stop as soon as a loss is not finite.

    Reading the loss waits for the device, so on a GPU only about every 50th minibatch is checked.
    """

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Check the loss that the step returned."""
        if module.device.type == "cpu" or index % max(1, 50 // batch.steps) == 0:
            self._check("train/loss", float(outputs["loss"]), trainer, module)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Check the epoch's losses before they are recorded."""
        for name, value in epoch_losses(trainer).items():
            self._check(name, value, trainer, module)

    def _check(self, name: str, value: float, trainer: Trainer, module: LightningModule) -> None:
        if not math.isfinite(value):
            assert isinstance(module, Model)
            epoch, remedy = trainer.current_epoch + 1, module.steadier_steps()
            raise Diverged(f"{name} is {value} in epoch {epoch}: {remedy}")


class DestroyProcessGroup(Callback):
    """Destroy DDP's process group before the process ends.

    Gloo's threads may abort a process that exits while they run
    (https://docs.pytorch.org/docs/stable/distributed.html#shutdown).
    """

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Destroy the group after the last communication."""
        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()


def best_row(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return the row with the lowest val/loss; the last of equal ones, or of rows without it."""
    return min(reversed(rows), key=lambda row: row.get("val/loss", -row["epoch"]))


class Record(Checkpoint):
    """Write metrics.csv, results.json and the checkpoints after each epoch.

    best.ckpt is written when val/loss is the lowest so far, last.ckpt always.
    The rows are part of the checkpoint, so a resumed run continues its table. results.json gets the
    epochs and the time so far, because a killed process cannot write them later.
    """

    def __init__(self, directory: Path, model_name: str, results: dict[str, Any]) -> None:
        self.directory, self.model_name, self.results = directory, model_name, results
        self.start = time.perf_counter()
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Record the epoch; all processes take part in saving, the first one writes."""
        row: dict[str, float] = {"epoch": trainer.current_epoch + 1}
        row["steps"] = row["epoch"] * trainer.datamodule.steps  # type: ignore[attr-defined]
        row |= epoch_losses(trainer)
        self.rows.append(row)
        folder = self.directory / "checkpoints"
        if best_row(self.rows) is row:
            trainer.save_checkpoint(folder / "best.ckpt")
        trainer.save_checkpoint(folder / "last.ckpt")
        if trainer.is_global_zero:
            table = [list(row.values()) for row in self.rows]
            write_csv(self.directory / "metrics.csv", list(row), table)
            elapsed = time.perf_counter() - self.start
            results = self.results | {"epochs": int(row["epoch"]), "steps": int(row["steps"])}
            for name in ("fit_seconds", "seconds"):
                results[name] = self.results[name] + elapsed
            write_json(self.directory / "results.json", results)

    def on_save_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the model's name, so that the file can be loaded without a configuration."""
        checkpoint["model"] = self.model_name

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from saved rows."""
        self.rows = state["rows"]


class Progress(Callback):
    """Log a line for each epoch; on a terminal, show a bar over all of training below them."""

    def __init__(self, mean_image: float, directory: Path) -> None:
        self.mean_image, self.directory = mean_image, directory
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
        disable = True if current_process().name.startswith("Loky") else None
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
        """Advance the bar by the minibatches of the block."""
        if self.bar is not None and not self.bar.disable:
            self.bar.update(batch.steps)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Log the epoch's losses, with the mean image's loss if they are no better."""
        if self.bar is None:
            return
        losses = epoch_losses(trainer)
        hint = ""
        if is_no_better(min(losses.values()), self.mean_image):
            hint = f"  (no better than the mean image, {format_loss(self.mean_image)})"
        summary = "  ".join(f"{name} {format_loss(value)}" for name, value in losses.items())
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

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Close the bar, also after an error."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class TensorBoard(Callback):
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
        # The same in every run, so that one chart shows all runs.
        chart = ["Multiline", ["train/loss", "val/loss", "baseline/.*"]]
        self.writer.add_custom_scalars({"loss": {"compared with the baselines": chart}})
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
        for name, picture in module.pictures().items():
            tag = f"epochs/{name}"
            if isinstance(picture, Figure):
                self.writer.add_image(tag, figures.render(picture), epoch, dataformats="HWC")
            else:
                grid = make_grid(picture, nrow=10, padding=1, pad_value=0.3)
                self.writer.add_image(tag, grid, epoch)

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Log the epoch's losses, learning rate, baselines and pictures."""
        if self.writer is None:
            return
        epoch = trainer.current_epoch + 1
        for name, value in epoch_losses(trainer).items():
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
