"""The report of runs whose models have another objective than the loss."""

import csv
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from digitlab import figures
from digitlab.report import progress, statistics, table
from digitlab.report.findings import rank
from digitlab.report.page import write_report
from digitlab.runs.results import Objective, is_no_better, read_results, selection_score

from ..conftest import plan_jobs
from .test_report import split_rows, summarize_scores, write_run

ACCURACY = Objective("val/accuracy", "max")


def write_classifier(folder: Path, run: str, lr: float, seed: int, accuracy: float) -> None:
    """Write a run with this val/accuracy, a test accuracy 0.01 below it, and a loss that grows."""
    metrics = {"train/loss": accuracy, "val/loss": accuracy, "test/loss": accuracy}
    metrics |= {"val/accuracy": accuracy, "test/accuracy": accuracy - 0.01}
    objective = {"name": "val/accuracy", "value": accuracy, "direction": "max"}
    warning = "Not better than the majority class: test accuracy 0.1, the majority class alone ..."
    warnings = [warning] if accuracy < 0.12 else []
    more: dict[str, Any] = {"metrics": metrics, "objective": objective, "warnings": warnings}
    baselines = {"majority_class": 0.11}
    write_run(folder, run, lr, seed, 0.0, model="classifier", baselines=baselines, **more)


@pytest.fixture
def rates(tmp_path: Path) -> Path:
    """Accuracies 0.90, 0.91, 0.92 at rate 1, 0.10, 0.11, 0.12 at 2, and 0.80, 0.81, 0.82 at 3."""
    for lr, accuracy in ((1, 0.91), (2, 0.11), (3, 0.81)):
        for seed in range(3):
            write_classifier(
                tmp_path / "sweep", f"{lr}{seed}", lr, seed, accuracy + (seed - 1) / 100
            )
    return tmp_path / "sweep"


def test_settings_are_ranked_by_the_highest_accuracy(rates: Path, tmp_path: Path) -> None:
    """Rates 1, 3, 2, although their losses rise with the accuracy; no word of losses or images."""
    summary = write_report([rates], tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text()
    means = "Mean over seeds: 0.9100 with optimizer.lr=1, then 0.8100 with optimizer.lr=3;"
    assert f"{means} the difference is 0.1000, significant (p < 0.001;" in summary
    best = "Best val/accuracy: 0.9200 with optimizer.lr=1, seed 2;"
    assert f"{best} its test accuracy is 0.9100 (majority class 0.1100)." in summary
    # The test accuracies at rate 2 are 0.09, 0.10 and 0.11.
    assert "3 of 9 completed runs are no better than the majority class." in summary
    assert "Warning in" not in summary, "the line before counts it"
    rows = split_rows(line for line in page.splitlines() if line.startswith("|"))
    names = ["optimizer.lr", "seeds", "val/accuracy", "spread", "test/accuracy"]
    assert rows[0] == [*names, "of majority class", "seconds"]
    assert [row[0] for row in rows[2:5]] == ["1", "3", "2"]
    assert rows[2][:6] == ["1", "3", "0.9100", "0.0100", "0.9000", "8.18x"]
    assert "Higher is better." in page
    legend = "`of majority class` is the test accuracy relative to that baseline."
    assert legend in " ".join(page.split())
    assert "- Best at 1 (0.9100), worst at 2 (0.1100). The difference is 0.8000, signif" in page
    assert "mean accuracy" in page
    for words in ("mean image", "loss", "Loss"):
        assert words not in summary + page
    with (tmp_path / "report" / "runs.csv").open() as file:
        (row, *_) = csv.DictReader(file)
    columns = ("score_name", "score", "direction", "val/accuracy")
    assert [row[name] for name in columns] == ["val/accuracy", "0.9", "max", "0.9"]


def test_the_figure_of_an_effect_says_that_higher_is_better() -> None:
    """Its axis names the accuracy; that of a loss stays as it was. Each baseline has a line."""
    values = pd.DataFrame({"mean": [0.1, 0.2], "std": [0.0, 0.01]}, index=["1", "2"])
    baselines = {"majority class": 0.11, "chance": 0.1, "nearest centroid": 0.15}
    for direction, label in (("max", ", higher is better\n"), ("min", " ")):
        figure = figures.effect({"": values}, ["1", "2"], "a", "val/x", baselines, direction)
        assert figure.axes[0].get_ylabel() == f"val/x{label}(bars: spread over seeds)"
        lines = [line for line in figure.axes[0].lines if str(line.get_label()).endswith("(test)")]
        assert len(lines) == 3


def test_the_curve_of_an_accuracy_has_its_own_names() -> None:
    """Training, held-out and test accuracy with the majority class, and a star if it is known."""
    history = [{"epoch": n, "train/accuracy": 0.5, "val/accuracy": n / 3} for n in (1, 2)]
    for test, star in ((0.6, ["test/accuracy 0.6000 (epoch 2)"]), (None, [])):
        baselines = {"majority_class": 0.11}
        (axes,) = figures.training_curve(history, 2, test, baselines, "", ACCURACY, "accuracy").axes
        labels = axes.get_legend_handles_labels()[1]
        curves = ["train/accuracy (last 0.5000)", "val/accuracy (last 0.6667)"]
        assert labels == [*curves, *star, "majority class 0.1100"]
        assert axes.get_ylabel() == "accuracy"


def test_the_extremes_are_the_same_for_both_directions() -> None:
    """The best of one is the worst of the other; gap and p-value, which have no sign, are equal."""
    values = summarize_scores([[0.5, 0.52, 0.51], [0.6, 0.63, 0.61], [0.7, 0.75, 0.71]])
    lowest = statistics.compare_extremes(values)
    highest = statistics.compare_extremes(values, ACCURACY)
    assert (lowest.best, lowest.worst) == (highest.worst, highest.best) == ("0", "2")
    assert lowest.p_value == highest.p_value
    assert lowest.words.partition(" (")[0] == highest.words.partition(" (")[0]


def test_a_choice_is_compared_at_its_highest_accuracy(tmp_path: Path) -> None:
    """sgd with momentum 0.9 (0.80) and not 0 (0.60) is compared with adamw (0.70)."""
    for run, name, momentum, accuracy in (
        ("a", "sgd", 0.0, 0.6),
        ("b", "sgd", 0.9, 0.8),
        ("c", "adamw", None, 0.7),
    ):
        write_classifier(tmp_path / "sweep", run, 1, 0, accuracy)
        path = tmp_path / "sweep" / run / "results.json"
        content = json.loads(path.read_text())
        optimizer = {"name": name} | ({} if momentum is None else {"momentum": momentum})
        content["config"] = {"seed": 0, "optimizer": optimizer}
        path.write_text(json.dumps(content))
    write_report([tmp_path / "sweep"], tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text()
    section = page.partition("## Effect of optimizer\n")[2].partition("##")[0]
    assert "- Best at sgd (0.8000), worst at adamw (0.7000)." in section


def test_different_objectives_are_reported_apart(tmp_path: Path) -> None:
    """Two rates of k-means by their loss, two of a classifier by its accuracy, and a failed job.

    Each has its ranking, effect and figures, and neither is compared with the other.
    """
    sweep_dir = tmp_path / "sweep"
    for run, lr, loss in (("a", 1, 0.05), ("b", 2, 0.06)):
        write_run(sweep_dir, run, lr, 0, loss)
    for run, lr, accuracy in (("c", 1, 0.8), ("d", 2, 0.9)):
        write_classifier(sweep_dir, run, lr, 0, accuracy)
    write_run(sweep_dir, "e", 3, 0, None)
    for run in ("b", "d"):
        (sweep_dir / run / "figures").mkdir()
        for name in ("centers", "loss", "mine", "a (b)"):
            (sweep_dir / run / "figures" / f"{name}.png").write_bytes(b"")
    summary = write_report([sweep_dir], tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text()
    assert "5 jobs: 4 completed, 1 failed." in summary
    titles = "By val/loss, lowest first", "By val/accuracy, highest first"
    for text in (summary, page):
        first, second = text.partition(titles[0])[2].split(titles[1])
        assert "Best val/loss: 0.0500 with optimizer.lr=1, seed 0; its test loss" in first
        assert "Best val/accuracy: 0.9000 with optimizer.lr=2, seed 0; its test acc" in second
        assert "mean image" not in second
        assert "accuracy" not in first
    assert page.count("## Effect of optimizer.lr") == 2
    names = {path.name for path in (tmp_path / "report").glob("*.png")}
    effects = {f"effect_{part}_optimizer.lr.png" for part in ("min_loss", "max_accuracy")}
    # The model's own figure too, but not one whose name a page could misread.
    assert names == effects | {"best_max_accuracy_centers.png", "best_max_accuracy_mine.png"}
    for name in names:
        assert f"]({name})" in page
    write_report([sweep_dir / "a", sweep_dir / "b"], tmp_path / "report")
    assert {path.name for path in (tmp_path / "report").glob("*.png")} == {
        "effect_optimizer.lr.png"
    }


def test_the_progress_line_has_the_best_of_each_objective(tmp_path: Path) -> None:
    """The lowest loss and the highest accuracy so far."""
    plan_jobs(tmp_path, **{name: f"optimizer.lr={name}" for name in "abcd"})
    write_run(tmp_path, "a", 1, 0, 0.05)
    write_run(tmp_path, "b", 1, 0, 0.06)
    write_classifier(tmp_path, "c", 1, 0, 0.8)
    write_classifier(tmp_path, "d", 1, 0, 0.9)
    line = "best so far: val/loss 0.0500 (optimizer.lr=a), val/accuracy 0.9000 (optimizer.lr=d)"
    assert line in progress.standing(tmp_path, "d")


def test_runs_without_a_test_metric_or_baselines_are_reported(tmp_path: Path) -> None:
    """A log-likelihood, which is negative: the columns and sentences that need them are left out.

    A baseline below 0 is named, but no ratio to it is formed.
    """
    objective = {"name": "val/log_likelihood", "direction": "max"}
    for run, lr, value in (("a", 1, -90.5), ("b", 2, -95.0)):
        more = {"metrics": {"val/log_likelihood": value}, "baselines": {}}
        write_run(tmp_path / "x", run, lr, 0, 0.0, objective=objective | {"value": value}, **more)
        more["metrics"]["test/log_likelihood"] = value - 1
        more["baselines"] = {"unigram": -92.0}
        write_run(tmp_path / "y", run, lr, 0, 0.0, objective=objective | {"value": value}, **more)
    summary = write_report([tmp_path / "x"], tmp_path / "report")
    assert "Best val/log_likelihood: -90.5 with optimizer.lr=1, seed 0.\n" in summary
    summary = write_report([tmp_path / "y"], tmp_path / "report")
    assert "its test log_likelihood is -91.5 (unigram -92)." in summary
    assert "2 of 2 completed runs are no better than the unigram." in summary
    runs = table.collect([tmp_path / "y"])
    assert "of unigram" not in rank(runs, ["config.optimizer.lr"])


def test_one_percent_is_measured_in_the_better_direction() -> None:
    """0.1135 of a majority class needs 0.1147; a loss of 0.0675 needs 0.0668; -100 needs -99."""
    loss = Objective()
    for objective, value, baseline, expected in (
        (ACCURACY, 0.1146, 0.1135, True),
        (ACCURACY, 0.1147, 0.1135, False),
        (loss, 0.0669, 0.0675, True),
        (loss, 0.0668, 0.0675, False),
        (ACCURACY, -99.5, -100, True),
        (ACCURACY, -98.5, -100, False),
    ):
        assert is_no_better(value, baseline, objective) == expected


@pytest.mark.parametrize(
    "objective",
    [
        {"name": "val/accuracy", "value": 0.9, "direction": "highest"},
        {"name": "val/accuracy", "value": None, "direction": "max"},
        {"name": "val/accuracy", "value": 10**400, "direction": "max"},
        {"name": "val|accuracy", "value": 0.9, "direction": "max"},
        {"name": 3, "value": 0.9, "direction": "max"},
        {"name": "val/accuracy", "value": 0.9},
        ["val/accuracy", 0.9, "max"],
    ],
)
def test_results_with_an_invalid_objective_are_not_read(objective: Any, tmp_path: Path) -> None:
    """This program cannot have written them as the results of a completed run."""
    write_classifier(tmp_path, "a", 1, 0, 0.9)
    results = read_results(tmp_path / "a")
    assert results is not None
    assert selection_score(results) == (ACCURACY, 0.9)
    (tmp_path / "a" / "results.json").write_text(json.dumps(results | {"objective": objective}))
    assert read_results(tmp_path / "a") is None


def test_results_without_an_objective_count_by_their_loss(tmp_path: Path) -> None:
    """As earlier versions wrote them: val/loss, or train/loss without held-out images."""
    write_run(tmp_path, "a", 1, 0, 0.05)
    write_run(tmp_path, "b", 1, 0, 0.05, metrics={"train/loss": 0.04, "test/loss": 0.07})
    write_run(tmp_path, "c", 1, 0, None)
    expected = {"a": ("val/loss", 0.05), "b": ("train/loss", 0.04)}
    for run, (name, value) in expected.items():
        results = read_results(tmp_path / run)
        assert results is not None
        assert selection_score(results) == (Objective(name, "min"), value)
    failed = read_results(tmp_path / "c")
    assert failed is not None
    assert failed["objective"] is None
