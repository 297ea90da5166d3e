"""The report of a search: its result, its course, and which settings mattered."""

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from digitlab.report import findings, search
from digitlab.report.page import write_report
from digitlab.runs.results import Objective

from .synthetic import write_run

RATES = [10 ** (step / 5 - 3) for step in range(12)]  # from 0.001 to 0.16


def loss_of(rate: float, size: int) -> float:
    """The rate matters most; the best is 0.1 with size 8."""
    return 0.03 + 0.01 * abs(math.log10(rate) + 1) + 0.0001 * size / 8


def write_trial(folder: Path, number: int, rate: float, size: int, **changes: Any) -> None:
    """Write a trial, and let the plan name it after the earlier ones."""
    # In another order than their names have.
    run = folder / f"{(number * 7) % 97:012x}"
    write_run(run, rate, size, 0, loss_of(rate, size), b"")
    edit(run, trial=True, tested=False, **changes)
    plan = folder / "sweep.json"
    jobs = json.loads(plan.read_text())["jobs"] if plan.exists() else []
    jobs.append({"name": run.name, "lines": [f"optimizer.lr={rate}"]})
    plan.write_text(json.dumps({"jobs": jobs}))


def edit(run: Path, **changes: Any) -> None:
    """Change the results of a run; a trial has no metrics of the test images."""
    results = json.loads((run / "results.json").read_text()) | changes
    if results.get("trial"):
        results["metrics"] = {"val/loss": results["objective"]["value"]}
    (run / "results.json").write_text(json.dumps(results))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Twelve completed trials and two pruned ones, which ran 5 and 10 of 20 epochs."""
    for number, rate in enumerate(RATES):
        write_trial(tmp_path, number, rate, 8 if number % 2 else 16)
    pruned = {"status": "pruned", "fit_seconds": 10.0, "seconds": 11.0}
    write_trial(tmp_path, 12, 0.5, 8, epochs=5, **pruned)
    write_trial(tmp_path, 13, 0.6, 8, epochs=10, **pruned)
    return tmp_path


def confirm(sweep: Path) -> None:
    """Run the best trial again with the seeds 1, 2 and 3: worse than several trials."""
    for seed, loss in enumerate((0.033, 0.034, 0.035), start=1):
        write_run(sweep / f"confirm{seed}", RATES[10], 16, seed, loss, b"")


def test_the_result_is_the_mean_over_fresh_seeds(sweep: Path) -> None:
    """It comes first though trials are better, and the run that was selected is not part of it."""
    confirm(sweep)
    (part,) = findings.find([sweep]).parts
    first, second = part.ranking.iloc[0], part.ranking.iloc[1]
    assert (first.result, first.seeds, first["val/loss"]) == ("confirmed", 3, "0.0340")
    assert (second.result, second.seeds) == ("candidate", 1)
    assert float(second["val/loss"]) < 0.034
    assert list(part.ranking.result[1:].unique()) == ["candidate"]
    assert part.best.seed == 1
    result, selected, pruned = part.summary.verdict
    assert result == (
        "Result: val/loss 0.0340 with model.latent_dim=16 optimizer.lr=0.1, the mean over the fresh"
        " seeds 1, 2, 3 (spread 0.0010); its test loss is 0.0350 (mean image 0.0675, pca 0.0269)."
    )
    assert "As a trial, with seed 0, it had 0.0302, one of 14 trials." in selected
    # 15 epochs of 2 s and 10 of 1 s.
    assert pruned.startswith(
        "2 of 14 trials were pruned, after 15 of their 40 epochs. At the pace of each, the missing"
        " epochs would have taken 40 s (an estimate)"
    )


def test_without_fresh_seeds_there_are_only_candidates(sweep: Path) -> None:
    """The report says how to confirm the best one."""
    (part,) = findings.find([sweep]).parts
    assert set(part.ranking.result) == {"candidate"}
    best, remedy, _ = part.summary.verdict
    assert best.startswith(
        "Best of 14 trials: val/loss 0.0302 with model.latent_dim=16 optimizer.lr=0.1."
    )
    assert 'hydra.sweeper.confirm=["seed=1","seed=2","seed=3"]' in remedy


def test_numbers_with_many_values_have_slices_and_no_effects(sweep: Path) -> None:
    """Twelve rates are compared by their slice alone, two sizes at one rate as in any report."""
    write_run(sweep / "other", RATES[10], 8, 0, 0.031, b"")
    (part,) = findings.find([sweep]).parts
    assert part.search is not None
    assert {effect.name for effect in part.effects} == {"model.latent_dim"}
    assert [panel.label for panel in part.search.slices] == ["model.latent_dim", "optimizer.lr"]


def test_the_course_follows_the_plan(sweep: Path) -> None:
    """Scores of pruned trials are drawn, but they are no best so far; time adds up."""
    (part,) = findings.find([sweep]).parts
    assert part.search is not None
    by_number, by_time = part.search.course
    best, own = by_number.series
    assert best.y == [min(own.y[: n + 1]) for n in range(12)] + [min(own.y)] * 2
    assert own.x == list(range(1, 15))
    assert by_time.series[0].x[-1] == pytest.approx(part.search.trials.seconds.sum() / 60)
    sizes, rates = part.search.slices
    assert [points.name for points in rates.series] == ["completed", "pruned"]
    assert rates.ticks == {}
    assert sizes.ticks == {"8": 8.0, "16": 16.0}


def test_fanova_names_the_setting_that_matters(sweep: Path) -> None:
    """Shares that add up to one; with few trials, or without Optuna, a line says why not."""
    pytest.importorskip("optuna")
    (part,) = findings.find([sweep]).parts
    assert part.search is not None
    assert list(part.search.importance) == ["optimizer.lr", "model.latent_dim"]
    assert part.search.importance["optimizer.lr"] > 0.8
    assert sum(part.search.importance.values()) == pytest.approx(1)
    shares, note = search.find_importance(part.search.trials.head(5))
    assert (shares, note) == ({}, "Their importance takes 10 completed trials or more.")


def test_the_pages_of_a_search(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts in HTML, figures in Markdown; without Optuna a line instead of the importance."""
    monkeypatch.setitem(sys.modules, "optuna", None)
    confirm(sweep)
    out = sweep / "report"
    text = write_report([sweep], out)
    assert "Result: val/loss 0.0340" in text
    markdown = (out / "report.md").read_text()
    assert "Their importance takes Optuna: pip install 'digitlab[search]'." in markdown
    for name in re.findall(r"\((search_\w+\.png)\)", markdown):
        assert (out / name).stat().st_size > 10_000
    page = (out / "report.html").read_text()
    assert "Result of the search: val/loss, lower is better" in page
    section = page.partition("<h2>The search</h2>")[2].partition("</section>")[0]
    assert section.count('<svg class="chart"') == 4
    first = re.search(r"<tbody>\s*<tr[^>]*>(.*?)</tr>", page, re.DOTALL)
    assert first is not None
    assert "confirm1" in first[1]


@pytest.mark.parametrize("direction", ["min", "max"])
def test_a_trial_that_is_far_worse_is_not_drawn(direction: str) -> None:
    """Best 1, median 2: all up to ten times that distance away, 11, stay."""
    sign = 1 if direction == "min" else -1
    scores = pd.Series([2.0, 1.0, 11.0, 2.0, 12.0]) * sign
    kept = search.drop_far(scores, scores, Objective("val/loss", direction))
    assert kept.notna().tolist() == [True, True, True, True, False]
