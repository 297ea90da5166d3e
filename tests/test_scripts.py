"""scripts/benchmark.py and scripts/step_size.py run, on tiny data; what they measure is for people to read."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from digitlab.data import split
from digitlab.sources import load

from .conftest import ROOT


def script(name: str) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_contender_of_the_benchmark_trains(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours, the bare loops, scikit-learn and plain Lightning each do their epochs and say how long they took."""
    benchmark = script("benchmark")
    monkeypatch.setattr(benchmark, "read", lambda _: split(load(str(tiny), "files", False), None, 0, None, seed=0))
    for contender in (benchmark.ours, benchmark.bare_kmeans, benchmark.scikit_learn):
        assert contender(benchmark.KMEANS, "") > 0
    for contender in (benchmark.ours, benchmark.bare_autoencoder, benchmark.usual_autoencoder):
        assert contender(benchmark.AUTOENCODER, "") > 0


def test_the_benchmark_tells_ratios(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Contenders that take 2 s and 4 s, in processes of their own, are told with 1.00 and 0.50."""
    benchmark = script("benchmark")
    benchmark.compare("title", {"ours": two, "theirs": four}, rounds=2)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[2:] == [["ours", "2.00", "2.00", "2.00", "1.00"], ["theirs", "4.00", "4.00", "4.00", "0.50"]]


def two() -> float:
    return 2.0


def four() -> float:
    return 4.0


def test_step_size_prints_a_rate_a_seed(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six rows, one for each number of Lloyd steps, each with an eta per seed and the rate it means."""
    step_size = script("step_size")
    monkeypatch.setattr(step_size, "load", lambda _: load(str(tiny), "files", False))
    monkeypatch.setattr(sys, "argv", ["step_size.py", "--seeds", "0", "1", "--batch-size", "50"])
    step_size.main()
    rows: list[Any] = [line.split() for line in capsys.readouterr().out.splitlines()[2:-1]]
    assert [row[0] for row in rows] == ["0", "1", "2", "5", "10", "20"]
    for row in rows:
        assert float(row[3].rstrip(",")) == pytest.approx(784 * float(row[1]), rel=0.02, abs=5)
