"""The scripts that measure run, on tiny data, and their formulas and tables are right."""

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
import pytest
import torch

from digitlab.config.validation import to_plain
from digitlab.data.images import Source
from digitlab.data.mnist import load
from digitlab.runs.files import directory_lock
from digitlab.runtime.seeds import Stream, generator
from digitlab.training.stages import build_model

from .conftest import ROOT, compose, results, run_here

PROGRAMS = [path for path in (ROOT / "scripts").glob("*.py") if path.stem != "contenders"]  # which is a module


@pytest.fixture
def source(tiny: Path) -> Source:
    return load(str(tiny), "files", verify=False)


@pytest.fixture
def script(source: Source, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that gives a script as a module which finds the tiny data; what it spawns finds none."""

    def give(name: str) -> Any:
        module = importlib.import_module(name)
        if hasattr(module, "load"):
            monkeypatch.setattr(module, "load", lambda _: source)
        return module

    return give


@pytest.mark.parametrize("path", [ROOT / "train.py", *PROGRAMS], ids=lambda path: path.stem)
def test_without_the_environment_its_remedy_is_told(path: Path) -> None:
    """A Python that has no libraries: a line that names what is missing, this Python, and the two set-up commands."""
    done = subprocess.run([sys.executable, "-S", path], capture_output=True, text=True, timeout=60)
    told = rf"\w+ is not installed in {re.escape(sys.executable)}: run 'make setup', then '. .venv/bin/activate'\n"
    assert re.fullmatch(told, done.stderr)
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (ValueError("x=1: must be 2"), 2, "Error: x=1: must be 2\n"),
        (
            OSError(28, "No space left on device"),
            2,
            "Error: [Errno 28] No space left on device: nothing could be written",
        ),
    ],
)
def test_a_script_ends_in_words(
    error: BaseException, code: int, told: str, script: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistake, a full disk: a line and its exit code."""

    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as done:
        script("command").ends_in_words(main)()
    assert done.value.code == code
    assert capsys.readouterr().err.startswith(told)


# -- step_size ----------------------------------------------------------------------------------------------


def test_the_best_step_worked_by_hand(script: Any) -> None:
    """One cluster: p = 1/2, delta = 4, sigma^2 = 8, B = 10 ask for 1/(1 + 2/10 (2 + 1/2)) = 2/3; ten equal clusters
    without spread in minibatches of 64 for 4.38.
    """
    step_size = script("step_size")
    half, four, eight = (torch.tensor([value], dtype=torch.float64) for value in (0.5, 4.0, 8.0))
    assert step_size.best_eta(step_size.Clusters(half, four, eight, half), 10) == pytest.approx(2 / 3)
    ten = torch.ones(10, dtype=torch.float64)
    balanced = step_size.Clusters(ten / 10, ten, 0 * ten, ten)
    assert step_size.best_eta(balanced, 64) == pytest.approx(1 / (0.2 + 0.9 / 32))


def test_moments_worked_by_hand(script: Any) -> None:
    """Of the points 0, 2 and 10 the centre at 0 wins two: their mean is 1 away, and they lie 1 about it."""
    c = script("step_size").clusters(torch.tensor([[0.0], [2.0], [10.0]]), torch.tensor([[0.0], [9.0], [99.0]]))
    assert c.p.tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    assert c.delta.tolist() == [1, 1, 0]
    assert c.spread.tolist() == [1, 0, 0]


@pytest.mark.parametrize("batch_size", [8, 64])
def test_the_closed_form_agrees_with_simulation(script: Any, batch_size: int) -> None:
    """Bias^2 + variance of steps around three uneven clusters: formula and 20,000 minibatches within 5 %."""
    step_size, rng = script("step_size"), generator(0, Stream.INIT)
    where = torch.tensor([[0.0, 0.0], [6.0, 0.0], [0.0, 9.0]]).repeat_interleave(torch.tensor([600, 300, 100]), dim=0)
    x = where + torch.randn(1000, 2, generator=rng)
    centers = torch.tensor([[1.0, 0.5], [5.0, 1.0], [0.0, 7.0]])
    c = step_size.clusters(x, centers)
    etas = torch.linspace(0.1, 3, 7, dtype=torch.float64)
    measured = step_size.simulate(x, centers, c.mean, etas, batch_size, 20_000, rng)
    bias, variance = step_size.expected(c, etas, batch_size)
    torch.testing.assert_close(measured.variance, variance, rtol=0.05, atol=0)
    torch.testing.assert_close(measured.bias + measured.variance, bias + variance, rtol=0.05, atol=0)
    assert measured.best == pytest.approx(step_size.best_eta(c, batch_size), rel=0.05)
    total = bias + variance
    near = torch.tensor([0.98, 1, 1.02], dtype=torch.float64) * step_size.best_eta(c, batch_size)
    left = sum(step_size.expected(c, near, batch_size))
    assert left[1] < min(left[0], left[2], total.min() * 1.0001), "the best step is where the sum is least"


def test_step_size_tells_and_draws(
    script: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A row each for six sets of centres, with an eta and the rate that it means, and two figures."""
    step_size = script("step_size")
    monkeypatch.setattr(sys, "argv", ["step_size.py", "--seeds", "0", "1", "--batches", "50", "--out", str(tmp_path)])
    step_size.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("init=") and "lr 100" in line]
    assert len(rows) == 6
    for line in rows:
        eta, _, rate = line.split()[5:8]
        assert float(rate) == pytest.approx(784 * float(eta), rel=0.02, abs=1)
    assert {path.name for path in tmp_path.iterdir()} == {"errors.png", "course.png"}


# -- benchmark ----------------------------------------------------------------------------------------------


def test_every_contender_of_the_benchmark_trains(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours, bare loops, scikit-learn, plain Lightning: each takes time and memory, and all the k-means learn."""
    peers, words = script("contenders"), ["model=kmeans", "init=digit", "optimizer.lr=50", "data.batch_size=20"]
    for contender in (peers.ours, peers.bare_kmeans, peers.scikit_learn, peers.tutorial_kmeans):
        told = contender([*words, "trainer.max_epochs=2"], "")
        assert told["seconds"] > 0
        assert told["MiB"] > 100
        assert told["loss"] < 0.003, "the first centres have 0.0040"
    assert peers.lloyd("", 5)["loss"] == pytest.approx(peers.bare_kmeans(words, "")["loss"], rel=0.2)
    with monkeypatch.context() as patch:
        patch.setattr(peers, "trained", lambda wanted, data: (None, float(len(data.train.labels))))
        assert peers.ours([*words, "data.train_size=150"], "")["seconds"] == 150
        assert peers.ours(words, "", copies=2)["seconds"] == 1200
    words = ["experiment=autoencoder_best", "trainer.max_epochs=1"]
    for contender in (peers.ours, peers.bare_autoencoder, peers.tutorial_autoencoder):
        assert contender(words, "")["seconds"] > 0


def test_the_benchmark_tells_ratios(script: Any) -> None:
    """Ours takes 2 and 3 s, the other 4 and 4: medians of 2.5 and 4, a ratio from 0.50 to 0.75."""
    told = {"ours": [{"seconds": s, "MiB": 7.0, "loss": 0.5} for s in (2.0, 3.0)]}
    told |= {"theirs": [{"seconds": 4.0, "MiB": m} for m in (5.0, 9.0)]}
    rows = script("benchmark").table(told).to_numpy().tolist()
    assert rows[0] == ["ours", "2.50", "1.00 (1.00 to 1.00)", "0.5000", "7"]
    assert rows[1] == ["theirs", "4.00", "0.62 (0.50 to 0.75)", "", "9"]


def test_contenders_take_turns(script: Any) -> None:
    """Two rounds, each contender in a process of its own that it keeps."""
    benchmark = script("benchmark")
    told = benchmark.take_turns({"a": pid, "b": pid}, rounds=2)
    (a, again), (b, _) = told["a"], told["b"]
    assert a == again
    assert a != b


def pid() -> dict[str, int]:
    return {"pid": os.getpid()}


def test_the_benchmark_keeps_what_it_measured(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """JSON with every round, the table as Markdown and in the terminal, the figure; the sweeps of sizes are its."""
    benchmark = script("benchmark")
    one = {"seconds": 1.0, "MiB": 1.0, "loss": 0.1}
    monkeypatch.setattr(benchmark, "take_turns", lambda contenders, rounds: {n: [one] * rounds for n in contenders})
    monkeypatch.setattr(benchmark, "in_turn", lambda contenders: {n: [one] for n in contenders})
    for part in ("kmeans", "growth"):
        monkeypatch.setattr(sys, "argv", ["benchmark.py", "--only", part, "--out", str(tmp_path), "--rounds", "2"])
        benchmark.main()
        kept = json.loads((tmp_path / "benchmark.json").read_text())
        if part == "kmeans":
            assert len(kept["k-means, ten epochs in minibatches of 64"]["digitlab"]) == 2
            assert (tmp_path / "benchmark.md").read_text() in capsys.readouterr().out
    assert list(kept["growth"]) == ["images", "clusters", "batch size"]
    assert (tmp_path / "benchmark.png").stat().st_size > 0


# -- reproduce ----------------------------------------------------------------------------------------------


def test_reproduce_finds_every_row_of_readme(script: Any) -> None:
    """Eight rows with a loss for each of 3 or 5 seeds, and words that compose; one is about the training loss."""
    reproduce = script("reproduce")
    rows = reproduce.table((ROOT / "README.md").read_text())
    assert sorted(len(row.losses) for row in rows) == [3, 3, 3, 5, 5, 5, 5, 5]
    assert [row.words for row in rows if row.metric == "train/loss"] == ["experiment=kmeans_best"]
    for row in rows:
        compose(*row.words.split())


@pytest.mark.slow
def test_reproduce_tells_whether_a_row_comes_out(
    script: Any, tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Other losses than README's are told; the same are, too, and what other code made is made anew."""
    reproduce = script("reproduce")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIGITLAB_DATA", str(tiny))
    words = "model=kmeans init=digit trainer.max_epochs=1 data.verify=false data.val_size=100 data.batch_size=20"
    assert "DIFFERS: README has 0.0000, 0.0000" in reproduce.run(reproduce.Row(words, "test/loss", ["0.0000"] * 2))
    places = [reproduce.place(words, seed) for seed in (0, 1)]
    made = [results(place) for place in places]
    other = places[1] / "results.json"
    other.write_text(json.dumps(made[1] | {"code": {"sha": "0" * 40, "dirty": False}}))
    with directory_lock(other.parent):
        reproduce.forget(other.parent)
    assert other.exists(), "another process is at it"
    shutil.copytree(places[1], places[1].parent / "0")  # of an earlier configuration
    losses = [f"{result['metrics']['test/loss']:.4f}" for result in made]
    assert reproduce.run(reproduce.Row(words, "test/loss", losses)).endswith("as in README")
    assert results(places[1])["code"]["sha"] == made[0]["code"]["sha"]


def test_reproduce_draws_the_pictures_of_the_docs(script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Four pictures, each shown by README or docs/generation.md."""
    reproduce = script("reproduce")
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    net = build_model(to_plain(compose("experiment=q2b", "prior=standard_normal")[0]))
    reproduce.draw(np.zeros((10, 28, 28)), net, net)
    pages = (ROOT / "README.md").read_text() + (ROOT / "docs" / "generation.md").read_text()
    drawn = sorted(path.name for path in (tmp_path / "docs").iterdir())
    assert len(drawn) == 4
    assert all(name in pages for name in drawn)


# -- evaluate ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "code"), [(1, 0), (1.1, 1)])
def test_evaluate_tells_small_losses_apart(
    factor: float,
    code: int,
    words: list[str],
    dark: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Dark images have a test loss of 6e-6: a tenth more is not as recorded."""
    evaluate = importlib.import_module("evaluate")
    run = tmp_path / "run"
    recorded = run_here(["model=kmeans", "init=digit", *words, f"data.root={dark}"], run)
    recorded["metrics"]["test/loss"] *= factor
    (run / "results.json").write_text(json.dumps(recorded))
    monkeypatch.setattr(sys, "argv", ["evaluate.py", str(run)])
    with pytest.raises(SystemExit) as ended:
        evaluate.main()
    assert ended.value.code == code


# -- compare_rates ------------------------------------------------------------------------------------------


def test_compare_rates_has_digits_for_small_losses(script: Any) -> None:
    """MNIST's losses in four places, those of dark images in three digits, others in their own."""
    cell = script("compare_rates").mean_and_deviation
    assert cell("test/loss", [0.0517, 0.0519]) == "0.0518 ± 0.0001"
    assert cell("test/loss", [1.2e-6, 1.4e-6]) == "1.30e-06 ± 1.4e-07"
    assert cell("test/nmi", [0.0, 0.0]) == "0.000 ± 0.000"


def test_compare_rates_tells_mean_and_spread(
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
    assert all(float(row[3].split(" ± ")[0]) < 0.003 for row in rows), "the first centres have 0.0040"
