"""docs/extending.md, step by step: files in a folder outside the checkout, and commands."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from .conftest import ROOT, RunScript, load_results

PAGE = ROOT / "docs" / "extending.md"
BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_every_step_of_the_page_works_as_written(
    overrides: list[str], run_script: RunScript, tmp_path: Path
) -> None:
    """Each file is written and each command run, on small data; the results are those it names."""
    page, refused = PAGE.read_text(), ""
    for block in BLOCK.finditer(page):
        if name := re.search(r"`(my/\S+)`:\s*$", page[: block.start()]):
            (tmp_path / name[1]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name[1]).write_text(block["text"])
        elif block["language"] == "sh":
            for line in block["text"].splitlines():
                assert not refused
                refused = run_line(shlex.split(line), overrides, run_script)
        elif not block["language"]:
            assert refused == block["text"]
            refused = ""
    first = load_results(tmp_path / "outputs" / "first")
    assert first["objective"]["name"] == "val/accuracy"
    assert first["objective"]["value"] == first["metrics"]["val/accuracy"] > 0.8
    assert {"test/accuracy", "test/loss"} <= first["metrics"].keys()
    assert first["baselines"] == {"majority_class": pytest.approx(0.1)}
    report = (tmp_path / "outputs" / "widths" / "report" / "report.md").read_text()
    assert "model.width" in report
    assert "mean image" not in report
    rows = np.genfromtxt(
        tmp_path / "outputs" / "watched" / "metrics.csv", delimiter=",", names=True, deletechars=""
    )
    assert (rows["train/gradient_norm"] > 0).all()
    lines = (tmp_path / "outputs" / "lined" / "lines.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["model.name"] == "kmeans"
    final = load_results(tmp_path / "outputs" / "lined")["metrics"]["test/loss"]
    assert json.loads(lines[-1])["final/test/loss"] == final
    noise = load_results(tmp_path / "outputs" / "noise")
    assert noise["data"] == {"source": "noise", "digest": "noise of 12"}
    assert noise["metrics"]["test/accuracy"] == 1
    starts = [load_results(path.parent)["config"] for path in find_runs(tmp_path)]
    assert {"brightest", "digit"} == {config["model"]["init"]["name"] for config in starts[:2]}
    assert starts[2]["trainer"]["max_steps"] == 20


def find_runs(folder: Path) -> list[Path]:
    """The results of the runs in outputs/runs, in the order of their starts; k-means first."""
    return sorted(folder.glob("outputs/runs/*/results.json"))


def run_line(words: list[str], overrides: list[str], run_script: RunScript) -> str:
    """Run a command of the page; returns what it prints if it is refused."""
    assert words.pop(0) == "python"
    script = words.pop(0)
    small = []
    if script == "train.py" and not any(word.startswith("resume=") for word in words):
        small = overrides
        if any(word.startswith("data=") for word in words):
            small = [word for word in overrides if not word.startswith("data.")]
    done = run_script(script, *words, *small)
    if done.returncode == 0:
        return ""
    assert done.returncode == 2, done.stdout + done.stderr
    return done.stderr
