"""What follows training: metrics, warnings, figures and files of the best epoch."""

import math
from io import BytesIO
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard.summary import hparams

from digitlab import figures
from digitlab.data.images import Split
from digitlab.formatting import format_loss
from digitlab.models.base import Model, find_objective, sentence, trait
from digitlab.runs.files import atomic_write
from digitlab.runs.results import LOSS, Objective, describe_baseline, find_unbeaten
from digitlab.runtime import signals
from digitlab.training.callbacks import (
    Diverged,
    best_row,
    logged,
    write_summary,
)
from digitlab.training.event_files import open_writer

# TensorBoard's HParams page sorts metrics by their names, capitals first, and shows the first five.
OBJECTIVE_TAG = "Objective"


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
