"""What a run leaves behind while it trains: its history, checkpoints, progress and TensorBoard pages."""

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
from tensorboard.summary.writer import event_file_writer
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

log = logging.getLogger(__name__)
# TensorBoard reads a run's files in the order of their names, which end in the second and in this count: within a
# second number 10 would stand before number 9, and once 9 is read, 10 never be.
event_file_writer._global_uid = event_file_writer.AtomicCounter(10**9)


class Diverged(ArithmeticError):
    """The loss is no number any more."""


def epoch_losses(trainer: Trainer) -> dict[str, float]:
    """The epoch's mean training loss, and the validation loss where images are held out."""
    metrics = trainer.callback_metrics
    return {name: float(metrics[name]) for name in ("train/loss", "val/loss") if name in metrics}


class Watch(Callback):
    """Stop as soon as the training loss is not finite.

    Looking costs a wait for the device, so a GPU is asked every 50 minibatches or so.
    """

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Look at the loss that the step returned."""
        if module.device.type == "cpu" or index % max(1, 50 // batch.steps) == 0:
            self._check("train/loss", float(outputs["loss"]), trainer, module)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Look at the epoch's losses, before they are recorded."""
        for name, value in epoch_losses(trainer).items():
            self._check(name, value, trainer, module)

    def _check(self, name: str, value: float, trainer: Trainer, module: LightningModule) -> None:
        if not math.isfinite(value):
            assert isinstance(module, Model)
            epoch, remedy = trainer.current_epoch + 1, module.steadier_steps()
            raise Diverged(f"{name} is {value} in epoch {epoch}: {remedy}")


class LeaveGroup(Callback):
    """Leave the processes of DDP before this one ends.

    Gloo's threads, were they still there when the interpreter is taken down, may abort a process that has done its
    work (https://docs.pytorch.org/docs/stable/distributed.html#shutdown).
    """

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """After the last word between the processes."""
        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()


def best_of(rows: list[dict[str, float]]) -> dict[str, float]:
    """The row of the best epoch: that of the least val/loss, of equal ones and without held-out images the last."""
    return min(reversed(rows), key=lambda row: row.get("val/loss", -row["epoch"]))


class Record(Checkpoint):
    """After each epoch: a row of metrics.csv, last.ckpt, and best.ckpt where val/loss is the lowest so far.

    The rows are part of the checkpoint, so that a resumed run goes on with the table it had. results.json has the
    epochs and the time so far, which a killed process cannot tell any more.
    """

    def __init__(self, directory: Path, model_name: str, results: dict[str, Any]) -> None:
        self.directory, self.model_name, self.results = directory, model_name, results
        self.began = time.perf_counter()
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Write what the epoch gave; all processes take part in saving, the first one writes."""
        row: dict[str, float] = {"epoch": trainer.current_epoch + 1}
        row["steps"] = row["epoch"] * trainer.datamodule.steps  # type: ignore[attr-defined]
        row |= epoch_losses(trainer)
        self.rows.append(row)
        folder = self.directory / "checkpoints"
        if best_of(self.rows) is row:
            trainer.save_checkpoint(folder / "best.ckpt")
        trainer.save_checkpoint(folder / "last.ckpt")
        if trainer.is_global_zero:
            write_csv(self.directory / "metrics.csv", list(row), [list(r.values()) for r in self.rows])
            spent = time.perf_counter() - self.began
            told = self.results | {"epochs": int(row["epoch"]), "steps": int(row["steps"])}
            told |= {name: self.results[name] + spent for name in ("fit_seconds", "seconds")}
            write_json(self.directory / "results.json", told)

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Name the model, so that the file can be rebuilt without its configuration."""
        checkpoint["model"] = self.model_name

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from saved rows."""
        self.rows = state["rows"]


class Progress(Callback):
    """A line an epoch, and on a terminal below them one bar over all of training, with the time left."""

    def __init__(self, mean_image: float, directory: Path) -> None:
        self.mean_image, self.directory = mean_image, directory
        self.bar: Any = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Open the bar; tqdm itself stays silent where stderr is no terminal."""
        if trainer.is_global_zero:
            root = logging.getLogger()
            if trainer.world_size > 1 and not root.handlers:  # a process that DDP spawned has none of Hydra's logging
                root.setLevel(logging.INFO)
                stamped = "[%(asctime)s][%(levelname)s] %(message)s"
                for stream, form in ((sys.stdout, "%(message)s"), ((self.directory / "train.log").open("a"), stamped)):
                    handler = logging.StreamHandler(stream)
                    handler.setFormatter(logging.Formatter(form))
                    root.addHandler(handler)
            steps, epochs = trainer.datamodule.steps, trainer.max_epochs or 0  # type: ignore[attr-defined]
            done = steps * trainer.current_epoch
            # Where there is no terminal tqdm disables itself; joblib's workers would all draw on one line of theirs.
            quiet = True if current_process().name.startswith("Loky") else None
            tqdm.set_lock(RLock())  # its own is a semaphore, which a killed process leaves, to be warned of
            self.bar = tqdm(
                total=steps * epochs, initial=done, unit="step", disable=quiet, leave=False, desc="training"
            )

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Move on by the steps that the item held."""
        if self.bar is not None and not self.bar.disable:
            self.bar.update(batch.steps)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Show the epoch's losses, beside what the mean image would give where that is no worse."""
        if self.bar is None:
            return
        losses = epoch_losses(trainer)
        hint = ""
        if is_no_better(min(losses.values()), self.mean_image):
            hint = f"  (no better than the mean image, {format_loss(self.mean_image)})"
        words = "  ".join(f"{name} {format_loss(value)}" for name, value in losses.items())
        self.bar.clear()  # it is drawn again below the line
        log.info(
            "epoch %*d/%d  %s%s",
            len(str(trainer.max_epochs)),
            trainer.current_epoch + 1,
            trainer.max_epochs,
            words,
            hint,
        )

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Close the bar, also after an error."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class TensorBoard(Callback):
    """By epoch the scalars, beside the baselines on one chart, and the pictures that the model offers."""

    def __init__(self, directory: Path, baselines: dict[str, float], settings: dict[str, Any]) -> None:
        self.directory, self.baselines, self.settings = directory, baselines, settings
        self.writer: SummaryWriter | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Open the events file; what a resumed run had logged past its checkpoint is struck out."""
        if trainer.is_global_zero:
            purge = trainer.current_epoch + 1 if trainer.current_epoch else None
            self.writer = SummaryWriter(str(self.directory), purge_step=purge)
            chart = ["Multiline", ["train/loss", "val/loss", "baseline/.*"]]  # alike in all runs: one chart for all
            self.writer.add_custom_scalars({"loss": {"beside the baselines": chart}})
            # A session without an experiment: TensorBoard's HParams page then takes its columns from all runs, the
            # metrics from their scalars. With one in each run, as add_hparams writes, it would show the first run's.
            kinds = (bool, int, float, str)
            plain = {key: value if isinstance(value, kinds) else str(value) for key, value in self.settings.items()}
            self.writer._get_file_writer().add_summary(hparams(plain, {})[1])
            if not trainer.current_epoch:
                self._epoch(0, module)

    def _epoch(self, epoch: int, module: Any) -> None:
        assert self.writer is not None
        for name, value in self.baselines.items():
            self.writer.add_scalar(f"baseline/{name}", value, epoch)
        for name, picture in module.pictures().items():
            if isinstance(picture, Figure):
                self.writer.add_image(f"epochs/{name}", figures.render(picture), epoch, dataformats="HWC")
            else:
                self.writer.add_image(f"epochs/{name}", make_grid(picture, nrow=10, padding=1, pad_value=0.3), epoch)

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Log the epoch."""
        if self.writer is None:
            return
        epoch = trainer.current_epoch + 1
        for name, value in epoch_losses(trainer).items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.add_scalar("lr", trainer.optimizers[0].param_groups[0]["lr"], epoch)
        self._epoch(epoch, module)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Say on the HParams page that the run failed, but of an interrupted one, which goes on."""
        if self.writer is not None and isinstance(exception, Exception):
            _, _, end = hparams({}, {})  # of a success
            packed = end.value[0].metadata.plugin_data
            told = HParamsPluginData.FromString(packed.content)
            told.session_end_info.status = Status.Value("STATUS_FAILURE")
            packed.content = told.SerializeToString()
            self.writer._get_file_writer().add_summary(end)

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Close the events file, also after an error."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None
