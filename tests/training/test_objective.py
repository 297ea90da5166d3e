"""A model with an objective and baselines of its own: a classifier, ranked by its accuracy."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional

from digitlab import RunFailed
from digitlab.config import validation
from digitlab.data.images import Split
from digitlab.models import checkpoints
from digitlab.models.base import Model
from digitlab.registry import MODELS
from digitlab.report import progress
from digitlab.report.page import write_report
from digitlab.runs.results import Objective
from digitlab.training import callbacks, evaluation
from digitlab.training.experiment import run_experiment

from ..conftest import compose, load_results, plan_jobs

KMEANS = ["model=kmeans", "init=digit"]


class ScriptedClassifier(Model):
    """A linear classifier that logs the accuracies it was given, one an epoch."""

    objective = ("val/accuracy", "max")

    def __init__(self, accuracies: list[float], test_accuracy: float, **options: Any) -> None:
        super().__init__(**options)
        self.save_hyperparameters(logger=False)
        self.accuracies, self.test_accuracy = accuracies, test_accuracy
        self.linear = nn.Linear(784, 10)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        loss = functional.cross_entropy(self.linear(images.flatten(1)), labels)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        images, labels = batch
        self.log("val/loss", functional.cross_entropy(self.linear(images.flatten(1)), labels))
        self.log("val/accuracy", self.accuracies[self.current_epoch])

    def baselines(self, data: Split) -> dict[str, float]:
        commonest = data.train.labels.mode().values
        return {"majority_class": float((data.test.labels == commonest).float().mean())}

    def evaluate(self, data: Split) -> dict[str, float]:
        return {"train/accuracy": 0.95, "test/accuracy": self.test_accuracy}

    def warnings(self, metrics: dict[str, float], baselines: dict[str, float]) -> list[str]:
        return []


class MisspeltDirection(ScriptedClassifier):
    objective = ("val/accuracy", "maximum")


class MissingMetric(ScriptedClassifier):
    objective = ("val/recall", "max")


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the models of this file under the names of their classes."""
    for cls in (ScriptedClassifier, MisspeltDirection, MissingMetric):
        monkeypatch.setitem(MODELS._entries, cls.__name__, cls)


def train(
    overrides: list[str],
    directory: Path,
    accuracies: list[float],
    test_accuracy: float = 0.8,
    name: str = "ScriptedClassifier",
) -> float:
    """Train a model of this file for three epochs; returns its objective."""
    (cfg,) = compose(*KMEANS, "optimizer.lr=0.01", *overrides)
    model = {"name": name, "accuracies": accuracies, "test_accuracy": test_accuracy}
    plain = validation.to_plain(cfg) | {"model": model, "force": False}
    return run_experiment(OmegaConf.create(plain), directory)


def test_the_best_epoch_has_the_highest_accuracy(
    overrides: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The second of three epochs, although the loss falls in all; nothing speaks of mean images."""
    caplog.set_level("INFO")
    assert train(overrides, tmp_path, [0.1, 0.9, 0.7]) == pytest.approx(0.9)
    outcome = load_results(tmp_path)
    table = np.genfromtxt(tmp_path / "metrics.csv", delimiter=",", names=True, deletechars="")
    assert table["val/accuracy"].tolist() == pytest.approx([0.1, 0.9, 0.7])
    assert table["val/loss"].argmin() == 2
    assert outcome["best_epoch"] == 2
    assert checkpoints.read_rows(tmp_path / "checkpoints" / "best.ckpt")[-1]["epoch"] == 2
    value = pytest.approx(0.9)
    assert outcome["objective"] == {"name": "val/accuracy", "value": value, "direction": "max"}
    assert outcome["metrics"]["val/accuracy"] == value
    assert outcome["baselines"] == {"majority_class": pytest.approx(0.1)}
    assert outcome["warnings"] == []
    lines = [line for line in caplog.messages if line.startswith("epoch")]
    hint = "(no better than the majority class, 0.1000)"
    assert [hint in line for line in lines] == [True, False, False]
    assert re.search(r"test/accuracy +0\.8 +\(majority class 0\.1000\)", caplog.text)
    for words in ("mean image", "pixel", "explode"):
        assert words not in caplog.text + (tmp_path / "results.json").read_text()
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {"accuracy.png", "loss.png"}


def test_tensorboard_compares_the_objective_with_its_baselines(
    overrides: list[str], tmp_path: Path
) -> None:
    """One chart has the accuracies and the majority class, and the final one is for HParams.

    There the objective is the first metric, as they are sorted by their names.
    """
    train(overrides, tmp_path, [0.1, 0.9, 0.7])
    events = EventAccumulator(str(tmp_path)).Reload()
    tags = events.Tags()["scalars"]
    assert {"val/accuracy", "baseline/majority_class", "final/val/accuracy"} <= set(tags)
    assert min(tags) == "Objective"
    assert events.Scalars("Objective")[0].value == pytest.approx(0.9)
    layout = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    for text in (b"train/accuracy", b"val/accuracy", b"baseline/.*"):
        assert text in layout
    assert b"loss" not in layout


def test_without_held_out_images_the_training_accuracy_is_the_objective(
    overrides: list[str], tmp_path: Path
) -> None:
    """`evaluate` gives it; the last epoch is the best one, as for a loss."""
    assert train([*overrides, "data.val_size=0"], tmp_path, []) == 0.95
    outcome = load_results(tmp_path)
    expected = {"name": "train/accuracy", "value": 0.95, "direction": "max"}
    assert (outcome["objective"], outcome["best_epoch"]) == (expected, 3)


@pytest.mark.parametrize(
    ("accuracies", "test_accuracy", "warning"),
    [
        ([0.1, 0.1, 0.1], 0.1, "Not better than the majority class: test accuracy 0.1000, the"),
        ([0.1, 0.1, 0.1], 0.1005, "Less than 1 % better than the majority class: test accuracy"),
        ([0.9, 0.5, 0.09], 0.8, "Training got worse after its best epoch, 1, which the results"),
    ],
)
def test_a_classifier_is_warned_of_in_its_own_terms(
    accuracies: list[float],
    test_accuracy: float,
    warning: str,
    overrides: list[str],
    tmp_path: Path,
) -> None:
    """An accuracy of the majority class, and one that fell below it, by the accuracy alone."""
    train(overrides, tmp_path, accuracies, test_accuracy)
    (message,) = load_results(tmp_path)["warnings"]
    assert message.startswith(warning)
    if "worse" in warning:
        assert "describe: val/accuracy fell from 0.9000 to 0.0900. Lower optimizer.lr" in message


def test_training_is_worse_only_below_half_of_the_best_and_the_baseline() -> None:
    """Mirrors the loss: above twice the lowest and the mean image. A gain may be negative."""
    accuracy, loss = Objective("val/accuracy", "max"), Objective("val/loss", "min")
    for objective, best, final, baselines, is_worse in (
        (accuracy, 0.9, 0.46, {}, False),
        (accuracy, 0.9, 0.44, {}, True),
        (accuracy, 0.9, 0.44, {"majority_class": 0.1}, False),
        (accuracy, -2.0, -2.9, {}, False),
        (accuracy, -2.0, -3.1, {}, True),
        (loss, 0.05, 0.09, {}, False),
        (loss, 0.05, 0.11, {}, True),
        (loss, 0.05, 0.11, {"mean_image": 0.2}, False),
        (loss, 0.05, 0.21, {"mean_image": 0.2}, True),
    ):
        history = [{"epoch": n, objective.name: value} for n, value in ((1, best), (2, final))]
        messages = evaluation.warn_if_worse(history, baselines, objective, "train less")
        assert bool(messages) == is_worse, (objective, best, final, baselines)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("MisspeltDirection", r"objective=\('val/accuracy', 'maximum'\): must be the name of a"),
        ("MissingMetric", r"objective val/recall: the model logs val/accuracy, val/loss; log it"),
    ],
)
def test_an_objective_that_cannot_be_ranked_by_fails_early(
    name: str, reason: str, overrides: list[str], tmp_path: Path
) -> None:
    """A direction that is none before training, a metric that no epoch has after the first."""
    with pytest.raises(RunFailed, match=reason):
        train(overrides, tmp_path, [0.1, 0.9, 0.7], name=name)
    assert load_results(tmp_path)["epochs"] == 0


def test_an_interrupted_classifier_resumes_with_its_best_epoch(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the third epoch and run again: the second stays the best, with equal weights."""
    train(overrides, tmp_path / "uninterrupted", [0.1, 0.9, 0.7])

    def interrupt(self: Any, trainer: Any, *_: Any) -> None:
        if trainer.current_epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.DivergenceCheck, "on_train_batch_end", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(overrides, tmp_path / "cut", [0.1, 0.9, 0.7])
    train(overrides, tmp_path / "cut", [0.1, 0.9, 0.7])
    first, second = (load_results(tmp_path / name) for name in ("uninterrupted", "cut"))
    for key in ("objective", "metrics", "best_epoch"):
        assert first[key] == second[key]
    best = [
        checkpoints.load_model(tmp_path / name / "checkpoints" / "best.ckpt").state_dict()
        for name in ("uninterrupted", "cut")
    ]
    assert all(torch.equal(best[0][key], best[1][key]) for key in best[0])


def test_a_sweep_is_ranked_by_accuracy(overrides: list[str], tmp_path: Path) -> None:
    """The progress line and the report name the highest accuracy; neither knows a mean image."""
    sweep_dir = tmp_path / "sweep"
    sweep_dir.mkdir()
    plan_jobs(sweep_dir, a="optimizer.lr=0.01", b="optimizer.lr=0.02")
    for name, rate, accuracies in (("a", 0.01, [0.1, 0.6, 0.5]), ("b", 0.02, [0.1, 0.2, 0.8])):
        train([*overrides, f"optimizer.lr={rate}"], sweep_dir / name, accuracies)
    line = "Job 2 of 2 ended; best so far: val/accuracy 0.8000 (optimizer.lr=0.02)"
    assert progress.standing(sweep_dir, "b") == line
    summary = write_report([sweep_dir], tmp_path / "report")
    assert "Best val/accuracy: 0.8000 with" in summary
    assert "its test accuracy is 0.8000 (majority class 0.1000)." in summary
    page = (tmp_path / "report" / "report.md").read_text()
    for text in (summary, page, (tmp_path / "report" / "runs.csv").read_text()):
        assert "mean image" not in text
        assert "mean_image" not in text
