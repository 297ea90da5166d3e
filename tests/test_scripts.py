"""The scripts run on tiny data, and their formulas and tables are right."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from optuna.pruners import MedianPruner

from digitlab.config.validation import to_plain
from digitlab.data.images import Source, split
from digitlab.data.mnist import load
from digitlab.runs.files import directory_lock
from digitlab.runtime.seeds import Stream, generator
from digitlab.training.fitting import build_model

from .conftest import ROOT, compose, load_results, run_in_process

# contenders is a module of the benchmark, not a program.
PROGRAMS = [path for path in (ROOT / "scripts").glob("*.py") if path.stem != "contenders"]


@pytest.fixture
def source(tiny: Path) -> Source:
    return load(str(tiny), "files", verify=False)


@pytest.fixture
def script(source: Source, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that imports a script with the tiny data; child processes do not see it."""

    def import_script(name: str) -> Any:
        module = importlib.import_module(name)
        if hasattr(module, "load"):
            monkeypatch.setattr(module, "load", lambda _: source)
        return module

    return import_script


@pytest.mark.parametrize("path", [ROOT / "train.py", *PROGRAMS], ids=lambda path: path.stem)
def test_a_script_without_its_libraries_names_the_remedy(path: Path) -> None:
    """Without libraries: one line with the missing one, this Python and the setup commands."""
    done = subprocess.run([sys.executable, "-S", path], capture_output=True, text=True, timeout=60)
    remedy = r"run 'make setup', then '. .venv/bin/activate'\n"
    python = re.escape(sys.executable)
    assert re.fullmatch(rf"\w+ is not installed in {python}: {remedy}", done.stderr)
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("x=1: must be 2"), 2, "Error: x=1: must be 2\n"),
        (
            OSError(28, "No space left on device"),
            2,
            "Error: [Errno 28] No space left on device: cannot write",
        ),
    ],
)
def test_a_script_ends_with_a_message(
    error: BaseException, code: int, message: str, script: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A user error or a full disk gives one line and an exit code."""

    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as done:
        script("command").exit_on_error(main)()
    assert done.value.code == code
    assert capsys.readouterr().err.startswith(message)


# -- step_size -------------------------------------------------------------------------------------


def test_the_best_step_agrees_with_hand_calculation(script: Any) -> None:
    """One cluster with p = 1/2, delta = 4, sigma^2 = 8, B = 10: 1/(1 + 2/10 (2 + 1/2)) = 2/3.

    Ten equal clusters without spread in minibatches of 64: 4.38.
    """
    step_size = script("step_size")
    half, four, eight = (torch.tensor([value], dtype=torch.float64) for value in (0.5, 4.0, 8.0))
    assert step_size.best_eta(step_size.Clusters(half, four, eight, half), 10) == pytest.approx(
        2 / 3
    )
    ten = torch.ones(10, dtype=torch.float64)
    balanced = step_size.Clusters(ten / 10, ten, 0 * ten, ten)
    assert step_size.best_eta(balanced, 64) == pytest.approx(1 / (0.2 + 0.9 / 32))


def test_moments_agree_with_hand_calculation(script: Any) -> None:
    """Of the points 0, 2 and 10 the centre at 0 wins two, with their mean 1 away and variance 1."""
    x, centers = torch.tensor([[0.0], [2.0], [10.0]]), torch.tensor([[0.0], [9.0], [99.0]])
    c = script("step_size").measure_clusters(x, centers)
    assert c.p.tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    assert c.delta.tolist() == [1, 1, 0]
    assert c.spread.tolist() == [1, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [8, 64])
def test_the_closed_form_agrees_with_simulation(script: Any, batch_size: int) -> None:
    """Three uneven clusters: the formula and 20,000 minibatches agree within 5 %."""
    step_size, rng = script("step_size"), generator(0, Stream.INIT)
    means, counts = [[0.0, 0.0], [6.0, 0.0], [0.0, 9.0]], [600, 300, 100]
    mean_of = torch.tensor(means).repeat_interleave(torch.tensor(counts), dim=0)
    x = mean_of + torch.randn(1000, 2, generator=rng)
    centers = torch.tensor([[1.0, 0.5], [5.0, 1.0], [0.0, 7.0]])
    c = step_size.measure_clusters(x, centers)
    etas = torch.linspace(0.1, 3, 7, dtype=torch.float64)
    measured = step_size.simulate(x, centers, c.mean, etas, batch_size, 20_000, rng)
    bias, variance = step_size.expected_error(c, etas, batch_size)
    torch.testing.assert_close(measured.variance, variance, rtol=0.05, atol=0)
    torch.testing.assert_close(
        measured.bias + measured.variance, bias + variance, rtol=0.05, atol=0
    )
    assert measured.best == pytest.approx(step_size.best_eta(c, batch_size), rel=0.05)
    total = bias + variance
    near = torch.tensor([0.98, 1, 1.02], dtype=torch.float64) * step_size.best_eta(c, batch_size)
    left = sum(step_size.expected_error(c, near, batch_size))
    assert left[1] < min(left[0], left[2], total.min() * 1.0001), (
        "the best step has the smallest sum"
    )


@pytest.mark.slow
def test_step_size_prints_and_draws(
    script: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A row with an eta and its rate for each of six sets of centres, and two figures."""
    step_size = script("step_size")
    options = ["--seeds", "0", "--batches", "50", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["step_size.py", *options])
    step_size.main()
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith("init=") and "lr 100" in line]
    assert len(rows) == 6
    for line in rows:
        eta, _, rate = line.split()[5:8]
        assert float(rate) == pytest.approx(784 * float(eta), rel=0.02, abs=1)
    assert {path.name for path in tmp_path.iterdir()} == {"errors.png", "course.png"}


# -- benchmark -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_contender_of_the_benchmark_trains(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each contender takes time and memory, and every k-means lowers the loss."""
    peers = script("contenders")
    words = ["model=kmeans", "init=digit", "optimizer.lr=50", "data.batch_size=20"]
    for contender in (
        peers.run_digitlab,
        peers.run_pytorch_kmeans,
        peers.run_sklearn_minibatch,
        peers.run_lightning_kmeans,
    ):
        outcome = contender([*words, "trainer.max_epochs=2"], "")
        assert outcome["seconds"] > 0
        assert outcome["MiB"] > 100
        assert outcome["loss"] < 0.003, "the first centres have 0.0040"
    loss = peers.run_pytorch_kmeans(words, "")["loss"]
    assert peers.run_lloyd("", 5)["loss"] == pytest.approx(loss, rel=0.2)
    with monkeypatch.context() as patch:
        patch.setattr(peers, "train", lambda config, data: (None, float(len(data.train.labels))))
        assert peers.run_digitlab([*words, "data.train_size=150"], "")["seconds"] == 150
        assert peers.run_digitlab(words, "", copies=2)["seconds"] == 1200
    words = ["experiment=autoencoder_best", "trainer.max_epochs=1"]
    for contender in (
        peers.run_digitlab,
        peers.run_pytorch_autoencoder,
        peers.run_lightning_autoencoder,
    ):
        assert contender(words, "")["seconds"] > 0


def test_the_benchmark_computes_ratios(script: Any) -> None:
    """2 and 3 s against 4 and 4 s: medians of 2.5 and 4, a ratio from 0.50 to 0.75."""
    measurements = {"ours": [{"seconds": s, "MiB": 7.0, "loss": 0.5} for s in (2.0, 3.0)]}
    measurements |= {"theirs": [{"seconds": 4.0, "MiB": m} for m in (5.0, 9.0)]}
    rows = script("benchmark").make_table(measurements).to_numpy().tolist()
    assert rows[0] == ["ours", "2.50", "1.00 (1.00 to 1.00)", "0.5000", "7"]
    assert rows[1] == ["theirs", "4.00", "0.62 (0.50 to 0.75)", "", "9"]


def test_the_benchmark_compares_recipes_by_the_epochs_that_they_need(script: Any) -> None:
    """An epoch in 0.75 of the time, n instead of 22 times: 0.75 n/22 of the training."""
    benchmark = script("benchmark")
    *names, last = benchmark.RECIPES
    epochs, _ = benchmark.RECIPES[names[0]]
    assert benchmark.RECIPES[last][0] == 22
    measured = {name: [{"seconds": 1.0}, {"seconds": 2.0}] for name in names}
    rows = benchmark.make_recipe_table(measured | {last: [{"seconds": 2.0}] * 2})
    first = rows.to_numpy().tolist()[0]
    whole = [f"{ratio * epochs / 22:.2f}" for ratio in (0.75, 0.5, 1.0)]
    assert first[2] == "0.75 (0.50 to 1.00)"
    assert first[3] == f"{whole[0]} ({whole[1]} to {whole[2]})"
    for _, words in benchmark.RECIPES.values():
        compose(*words)


def test_contenders_take_turns(script: Any) -> None:
    """Over two rounds each contender stays in its own process."""
    benchmark = script("benchmark")
    outcomes = benchmark.take_turns({"a": os.getpid, "b": os.getpid}, rounds=2)
    (a, second_a), (b, _) = outcomes["a"], outcomes["b"]
    assert a == second_a
    assert a != b


def test_the_benchmark_writes_its_measurements(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """JSON with every round and size, the table in Markdown and in the terminal, the figure."""
    benchmark = script("benchmark")
    outcome = {"seconds": 1.0, "MiB": 1.0, "loss": 0.1}

    def take_turns(contenders: Any, rounds: int = 1) -> Any:
        return {name: [outcome] * rounds for name in contenders}

    monkeypatch.setattr(benchmark, "take_turns", take_turns)
    monkeypatch.setattr(benchmark, "run_once", take_turns)
    for part in ("kmeans", "growth"):
        options = ["--only", part, "--out", str(tmp_path), "--rounds", "2"]
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *options])
        benchmark.main()
        raw = json.loads((tmp_path / "benchmark.json").read_text())
        if part == "kmeans":
            assert len(raw["k-means, ten epochs in minibatches of 64"]["digitlab"]) == 2
            assert (tmp_path / "benchmark.md").read_text() in capsys.readouterr().out
    assert list(raw["growth"]) == ["images", "clusters", "batch size"]
    assert (tmp_path / "benchmark.png").stat().st_size > 0


# -- reproduce -------------------------------------------------------------------------------------


def test_reproduce_finds_every_row_of_readme(script: Any) -> None:
    """Ten rows with a loss for each of 3 or 5 seeds and valid overrides; one training loss."""
    reproduce = script("reproduce")
    rows = reproduce.parse_table((ROOT / "README.md").read_text())
    assert sorted(len(row.losses) for row in rows) == [3, 3, 3, 3, 3, 5, 5, 5, 5, 5]
    assert [row.words for row in rows if row.metric == "train/loss"] == ["experiment=kmeans_best"]
    for row in rows:
        compose(*row.words.split())


@pytest.mark.slow
def test_reproduce_compares_a_row_with_readme(
    script: Any, tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Different losses and equal ones are reported; runs of other code run again."""
    reproduce = script("reproduce")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIGITLAB_DATA", str(tiny))
    words = "model=kmeans init=digit trainer.max_epochs=1"
    words += " data.verify=false data.val_size=100 data.batch_size=20"
    line = reproduce.run_row(reproduce.Row(words, "test/loss", ["0.0000"] * 2))
    assert "DIFFERS: README has 0.0000, 0.0000" in line
    runs = [reproduce.run_directory(words, seed) for seed in (0, 1)]
    original = [load_results(run) for run in runs]
    other = runs[1] / "results.json"
    other.write_text(json.dumps(original[1] | {"code": {"sha": "0" * 40, "dirty": False}}))
    with directory_lock(other.parent):
        reproduce.remove_outdated(other.parent)
    assert other.exists(), "another process is working on it"
    # A run of an earlier configuration.
    shutil.copytree(runs[1], runs[1].parent / "0")
    losses = [f"{result['metrics']['test/loss']:.4f}" for result in original]
    assert reproduce.run_row(reproduce.Row(words, "test/loss", losses)).endswith("as in README")
    assert load_results(runs[1])["code"]["sha"] == original[0]["code"]["sha"]


def test_reproduce_draws_the_figures_of_the_docs(
    script: Any, source: Source, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Four figures, each shown in README or docs/generation.md."""
    reproduce = script("reproduce")
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    config = to_plain(compose("experiment=q2b", "prior=standard_normal")[0])
    net = build_model(config, split(source, None, 0, None, seed=0))
    reproduce.draw_figures(np.zeros((10, 28, 28)), net, net)
    pages = (ROOT / "README.md").read_text() + (ROOT / "docs" / "generation.md").read_text()
    drawn = sorted(path.name for path in (tmp_path / "docs").iterdir())
    assert len(drawn) == 4
    assert all(name in pages for name in drawn)


# -- evaluate --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "code"), [(1, 0), (1.1, 1)])
def test_evaluate_distinguishes_small_losses(
    factor: float,
    code: int,
    overrides: list[str],
    dark: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Dark images have a test loss of 6e-6: 10 % more does not agree with the record."""
    evaluate = importlib.import_module("evaluate")
    run = tmp_path / "run"
    recorded = run_in_process(["model=kmeans", "init=digit", *overrides, f"data.root={dark}"], run)
    recorded["metrics"]["test/loss"] *= factor
    (run / "results.json").write_text(json.dumps(recorded))
    monkeypatch.setattr(sys, "argv", ["evaluate.py", str(run)])
    with pytest.raises(SystemExit) as exit_:
        evaluate.main()
    assert exit_.value.code == code


# -- compare_searches ------------------------------------------------------------------------------


def test_compare_searches_says_when_a_goal_was_beaten_and_replays_a_pruner(
    script: Any, tmp_path: Path
) -> None:
    """Losses of 0.08, 0.05, 0.02 after 1, 3, 6 minutes: the mean image at 3, PCA at 6, 0.010 never.

    Of seven trials of two epochs the sixth is worst after its first epoch. The median pruner, which
    lets five trials pass, ends it there: 13 of 14 epochs; the best trial stays.
    """
    searches = script("compare_searches")
    search = pd.DataFrame({"status": "completed", "val/loss": [0.08, 0.05, 0.02]})
    search = search.assign(**{"baseline/mean_image": 0.0675, "baseline/pca": 0.0269})
    search = search.assign(minutes=[1.0, 3.0, 6.0], best=search["val/loss"])
    row = searches.make_row("TPE", [search, search])
    assert [row[f"minutes to {goal}"] for goal in searches.GOALS] == [
        "3.0, 3.0",
        "6.0, 6.0",
        "never, never",
    ]
    assert row["trials"] == "3, 3"
    assert row["best val/loss"].startswith("0.0200")
    runs = []
    for number, first in enumerate((0.06, 0.05, 0.04, 0.03, 0.05, 0.09, 0.02)):
        run = tmp_path / str(number)
        run.mkdir()
        (run / "metrics.csv").write_text(f"epoch,val/loss\n1,{first}\n2,{first / 2}\n")
        runs.append(str(run))
    replayed = searches.replay(pd.DataFrame({"run": runs, "best": 0.01}), MedianPruner())
    assert replayed == pytest.approx((13 / 14, 1.0))


def test_compare_searches_runs_each_search_and_writes_both_tables(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Valid overrides for every search, an exit code of 1 for failed trials, tables, figure."""
    searches, commands = script("compare_searches"), list[list[str]]()

    def record(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(searches.subprocess, "run", record)
    for name in (*searches.SEARCHES, searches.GRID, searches.KMEANS):
        for words in searches.make_commands(name, 1, 30, tmp_path):
            compose(*words)
    search = pd.DataFrame({"run": [str(tmp_path)], "status": "completed", "val/loss": 0.02})
    search = search.assign(**{"baseline/mean_image": 0.0675, "baseline/pca": 0.0269})
    monkeypatch.setattr(searches, "read_search", lambda _: search.assign(minutes=1.0, best=0.02))
    (tmp_path / "metrics.csv").write_text("epoch,val/loss\n1,0.03\n2,0.02\n")
    options = ["--seeds", "2", "--trials", "7", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["compare_searches.py", *options])
    searches.main()
    assert len(commands) == 2 * (len(searches.SEARCHES) + len(searches.GRID_SWEEPS) + 1)
    assert sum("hydra.sweeper.n_trials=7" in command for command in commands) == 6
    page = (tmp_path / "searches.md").read_text()
    assert page in capsys.readouterr().out
    assert page.count("| TPE, pruned ") == 1
    assert page.count("| median ") == 1
    assert (tmp_path / "searches.png").stat().st_size > 0
    monkeypatch.setattr(
        searches.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 2)
    )
    with pytest.raises(SystemExit):
        searches.main()
    assert "ended with exit code 2" in capsys.readouterr().err


# -- compare_rates ---------------------------------------------------------------------------------


def test_compare_rates_formats_small_losses(script: Any) -> None:
    """MNIST losses have four decimals, those of dark images three digits, scores their own."""
    cell = script("compare_rates").format_mean_and_std
    assert cell("test/loss", [0.0517, 0.0519]) == "0.0518 ± 0.0001"
    assert cell("test/loss", [1.2e-6, 1.4e-6]) == "1.30e-06 ± 1.4e-07"
    assert cell("test/nmi", [0.0, 0.0]) == "0.000 ± 0.000"


def test_compare_rates_reports_mean_and_spread(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row for each of ours and scikit-learn's, all of which find the ten squares."""
    rates = script("compare_rates")
    monkeypatch.setattr(rates, "OURS", {name: rates.OURS[name] for name in list(rates.OURS)[4:6]})
    monkeypatch.setattr(sys, "argv", ["compare_rates.py", "--seeds", "2", "--out", str(tmp_path)])
    rates.main()
    table = (tmp_path / "rates.md").read_text()
    assert table in capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert [row[1] for row in rows] == ["2"] * 5
    assert {row[0] for row in rows} >= {"init=digit, 1/n_k", "scikit-learn KMeans, n_init=20"}
    losses = [float(row[3].split(" ± ")[0]) for row in rows]
    assert max(losses) < 0.003, "the first centres have 0.0040"
