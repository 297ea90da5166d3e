"""What a report prints fits the terminal."""

from pathlib import Path

import pandas as pd
import pytest

from digitlab.report import page, terminal
from digitlab.report.page import write_report

from .test_report import write_run

RANKING = pd.DataFrame(
    {
        "optimizer.lr": ["0.01", "0.0031622776601683795"],
        "model.channels": ["[8,16,32]", "[16,32,64]"],
        "seeds": ["3", "3"],
        "val/loss": ["0.0503", "0.0675"],
        "of mean image": ["0.75x", "1.00x"],
        "of pca": ["1.31x", "1.74x"],
        "seconds": ["1.6", "1.7"],
    }
)


@pytest.mark.parametrize(("width", "left_out"), [(70, 2), (50, 4), (30, 4)])
def test_a_table_is_no_wider_than_the_terminal(width: int, left_out: int) -> None:
    """It loses columns in the order given, named below it, then the ends of its longest texts."""
    droppable = ["of pca", "seconds", "of mean image", "seeds"]
    *lines, note = terminal.fit_table(RANKING, width, droppable)
    assert max(map(len, [*lines, note])) <= width
    assert "val/loss" in lines[0]
    assert "0.0675" in lines[2]
    assert [name in lines[0] for name in droppable] == [False] * left_out + [True] * (4 - left_out)
    assert note.startswith("(not shown: of pca, seconds")
    assert ("0.0031622776601683795" in lines[2]) == (width > 30)
    assert ("…" in lines[2]) == (width == 30)


def test_without_a_terminal_nothing_is_shortened() -> None:
    """A file gets the whole table and whole sentences."""
    (text,) = terminal.fit_table(RANKING, None, ["seconds"])
    assert text == RANKING.to_string(index=False)
    assert terminal.wrap(["word " * 40], None) == ["word " * 40]
    assert terminal.find_width() is None, "pytest's capture is no terminal"


def test_a_report_on_a_terminal_of_sixty_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables and sentences fit; the failed job, the best rate and the baseline are there."""
    write_run(tmp_path, "a", 1, 0, 0.05)
    write_run(tmp_path, "b", 0.0031622776601683795, 0, 0.06)
    write_run(tmp_path, "c", 5, 0, None, error=f"ValueError: {'no image of a 3, ' * 9}")
    monkeypatch.setattr(page, "find_width", lambda: 60)
    *lines, place = write_report([tmp_path], tmp_path / "report").splitlines()
    assert max(map(len, lines)) <= 60
    text = "\n".join(lines)
    assert "Best val/loss: 0.0500 with optimizer.lr=1" in text
    assert "0.75x" not in text
    assert "of mean image" in text
    assert "Not completed:" in text
    assert "optimizer.lr=5 failed" in " ".join(text.split())
    assert place == f"Report: {tmp_path / 'report' / 'report.html'}"
