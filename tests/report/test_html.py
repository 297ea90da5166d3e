"""report.html says what report.md says, sorts and filters, and runs no script of a stranger."""

import json
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_rel

from digitlab.report import charts, curves, live, pairs, progress
from digitlab.report.by_metric import Criterion
from digitlab.report.page import write_report
from digitlab.report.run_page import render_run, write_run_page
from digitlab.runs.files import directory_lock

from ..conftest import plan_jobs
from .synthetic import make_png, write_runs
from .test_report import write_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
# Texts that leave an attribute, an element or a script if nothing escapes them.
CRAFTED = (
    "\"'><img src=x onerror=document.title='owned'></td></script><script>alert(1)</script>\u2028"
)


class Page(HTMLParser):
    """Collects the elements of a page, and the rows of its table of runs that are shown."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.words = ""
        self.is_in_runs = self.is_shown = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.elements.append((tag, values))
        if tag == "section":
            self.is_in_runs = values.get("id") == "runs"
        if tag == "tr" and self.is_in_runs and "data-status" in values:
            self.is_shown = "hidden" not in values
            if self.is_shown:
                self.rows.append([])
        if tag == "td" and self.is_in_runs and self.is_shown:
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        self.words += data
        if self.is_in_runs and self.is_shown and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "tbody":
            self.is_shown = False


def read_page(path: Path) -> Page:
    """Read a page without a browser."""
    return Page(path.read_text(encoding="utf-8"))


def open_page(path: Path, fragment: str, profile: Path) -> Page:
    """Open a page in chromium; returns what it shows after its script, which reports no error."""
    assert CHROMIUM is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    flags += ["--enable-logging=stderr", "--v=0", "--virtual-time-budget=2000", "--dump-dom"]
    command = [CHROMIUM, *flags, f"{path.as_uri()}#{fragment}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    assert "CONSOLE" not in done.stderr
    return Page(done.stdout)


def write_search(folder: Path) -> None:
    """Write three rates with three seeds each, and a failed run at a fourth rate."""
    for lr, loss in ((1, 0.06), (2, 0.05), (10, 0.07)):
        for seed in range(3):
            run = f"{lr:02}{seed}"
            value = loss + seed / 1000 + lr * (seed - 1) / 1e5
            labels = {"tags": ["first", "x2"], "note": "as before"} if lr == 2 else {}
            write_run(folder, run, lr, seed, value, seconds=60.0 + lr, **labels)
            history = f"epoch,val/loss\n1,{value + 0.01 + seed / 1000}\n2,{value}\n"
            (folder / run / "metrics.csv").write_text(history)
    write_run(folder, "zz", 100, 0, None)
    (folder / "zz" / "train.log").write_text("".join(f"line {n}\n" for n in range(40)))


def test_the_page_says_what_the_markdown_says(tmp_path: Path) -> None:
    """The page has all sentences of report.md, every run, the ranking and the end of the log."""
    write_search(tmp_path)
    write_report([tmp_path], tmp_path / "report")
    page = read_page(tmp_path / "report" / "report.html")
    for line in (tmp_path / "report" / "report.md").read_text().splitlines():
        if line.startswith("- "):
            assert line[2:] in page.words
    assert len(page.rows) == 10
    expected = ["completed", "0.0500", "0.0010", "2", "0", "first,x2"]
    assert page.rows[0][:6] == expected, "the best run is first"
    assert page.rows[0][-2] == "as before"
    assert page.rows[-1][0] == "failed"
    assert "ValueError: no image of a 3" in page.rows[-1][-1]
    assert "line 39" in page.words
    assert "line 3\n" not in page.words, "only the last lines"
    links = [values["href"] for tag, values in page.elements if tag == "a"]
    assert "../020/" in links
    assert (tmp_path / "report" / "../020/").is_dir()
    assert "paired t-test" in page.words


@pytest.mark.slow
@in_browser
def test_the_page_sorts_and_filters_in_a_browser(tmp_path: Path) -> None:
    """The address sorts numbers by size, in both directions, and filters by words and status."""
    write_search(tmp_path)
    write_report([tmp_path], tmp_path / "report")
    path, profile = tmp_path / "report" / "report.html", tmp_path / "profile"
    page = open_page(path, "sort=optimizer.lr&dir=descending&filter=seed%3D1", profile)
    assert [row[3:5] for row in page.rows] == [["10", "1"], ["2", "1"], ["1", "1"]]
    sorts = [values.get("aria-sort") for tag, values in page.elements if tag == "th"]
    assert sorts.count("descending") == 1
    page = open_page(path, "sort=objective&status=failed", profile)
    assert [row[0] for row in page.rows] == ["failed"]
    assert "1 of 10 runs" in page.words
    page = open_page(path, "sort=seed&filter=tag%3Dfirst", profile)
    assert [row[3:5] for row in page.rows] == [["2", "0"], ["2", "1"], ["2", "2"]]


def write_crafted_sweep(folder: Path) -> None:
    """Write runs whose every text is crafted: names, settings, errors, warnings and metrics."""
    for number, name in enumerate(("javascript:alert(1)", 'a"><script>alert(1)<', "c")):
        settings = {"optimizer": {"name": CRAFTED, "lr": number}, CRAFTED: f"{CRAFTED}{number}"}
        metrics = {"train/loss": 0.1, "val/loss": 0.1 + number, "test/loss": 0.1, CRAFTED: 1.0}
        more: dict[str, Any] = {"config": settings, "warnings": [CRAFTED, "\ud800"]}
        more |= {"baselines": {CRAFTED: 0.1}, "code": {"digest": CRAFTED}, "error": CRAFTED}
        more |= {"versions": {CRAFTED: CRAFTED}, "machine": {CRAFTED: CRAFTED}}
        more |= {"tags": [CRAFTED, CRAFTED], "note": CRAFTED}
        if number == 2:
            metrics, more["status"] = {}, "failed"
        write_run(folder, name, number, 0, 0.1, metrics=metrics, **more)
        run = folder / name
        history = f'epoch,val/loss,"a/{CRAFTED.replace(chr(34), chr(34) * 2)}"\n1,1,1\n2,1,1\n'
        (run / "metrics.csv").write_text(history)
        (run / "train.log").write_text(f"\x1b[31m{CRAFTED}\n")
        (run / "code.diff").write_text(CRAFTED)
        (run / f"fit-profile{CRAFTED.replace('/', '')}.txt").write_text("")
        (run / "figures").mkdir()
        (run / "figures" / "centers.png").write_text(CRAFTED)
        (run / "figures" / "own.png").write_bytes(make_png())
    plan_jobs(folder, **{"c": "lr=2", CRAFTED: CRAFTED})


def check_harmless(page: Page) -> None:
    """Check that a page has one script, no handlers, and links to places beside it alone."""
    assert [tag for tag, _ in page.elements].count("script") == 1
    for tag, values in page.elements:
        assert not [name for name in values if name.startswith("on")]
        assert tag not in ("iframe", "object", "embed", "form", "base")
        for name in ("href", "src", "xlink:href"):
            address = values.get(name) or ""
            is_picture = address.startswith(("data:image/png;base64,", "data:,"))
            assert ":" not in address or is_picture, address


def test_a_strangers_run_puts_no_script_into_a_page(tmp_path: Path) -> None:
    """Crafted texts stay texts: in the report, the page of a run and that of a running sweep."""
    folder = tmp_path / "sweep"
    write_crafted_sweep(folder)
    write_report([folder], tmp_path / "report")
    live.write_page(folder)
    pages = [tmp_path / "report" / "report.html", folder / "report" / "report.html"]
    for name in ("javascript:alert(1)", "c"):
        write_run_page(folder / name)
        pages.append(folder / name / "report.html")
    for path in pages:
        check_harmless(read_page(path))
        assert "script-src 'sha256-" in str(read_page(path).elements)
    assert "onerror" in read_page(pages[0]).words, "the texts are shown"
    links = [values["href"] for tag, values in read_page(pages[-1]).elements if tag == "a"]
    assert "./code.diff" in links


@pytest.mark.slow
@in_browser
def test_a_crafted_page_stays_harmless_in_a_browser(tmp_path: Path) -> None:
    """No crafted text becomes an element there, and the script finds nothing to complain about."""
    write_crafted_sweep(tmp_path / "sweep")
    write_report([tmp_path / "sweep"], tmp_path / "report")
    fragment = "filter=%3Cscript%3E&sort=%22%5D&status=%3Cimg%3E"
    page = open_page(tmp_path / "report" / "report.html", fragment, tmp_path / "profile")
    check_harmless(page)
    assert ("img", {"src": "x"}) not in page.elements
    assert "0 of 4 runs" in page.words


def test_files_outside_of_a_run_are_not_shown(tmp_path: Path) -> None:
    """A log, a history or a picture that is a link to another file of the user is left out."""
    write_run(tmp_path / "sweep", "a", 1, 0, None)
    secret = tmp_path / "secret"
    secret.write_text("epoch,my/password\n1,1234.5\n2,1234.5\n")
    for name in ("train.log", "metrics.csv", "code.diff"):
        (tmp_path / "sweep" / "a" / name).symlink_to(secret)
    page = render_run(tmp_path / "sweep" / "a", tmp_path)
    assert page is not None
    assert b"password" not in page
    assert b"code.diff" not in page


def test_paired_differences_are_tested_as_by_scipy() -> None:
    """The p-value is scipy's; equal differences are certain, and no differences are none."""
    first, second = np.array([0.3, 0.5, 0.4, 0.6]), np.array([0.35, 0.6, 0.41, 0.7])
    assert pairs.paired_p_value(first - second) == pytest.approx(ttest_rel(first, second).pvalue)
    assert pairs.paired_p_value(np.array([0.1, 0.1])) == 0
    assert pairs.paired_p_value(np.zeros(3)) == 1


def test_p_values_are_corrected_as_by_holm() -> None:
    """Three times the smallest, twice the next, once the largest, none below the one before."""
    assert pairs.correct_p_values([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert pairs.correct_p_values([]) == []


def test_seeds_reveal_a_difference_that_means_hide(tmp_path: Path) -> None:
    """Losses 0.1, 0.2, 0.3 and each 0.001 more: Welch's test sees nothing, the pairs do."""
    for seed, loss in enumerate((0.1, 0.2, 0.3)):
        write_run(tmp_path, f"a{seed}", 1, seed, loss)
        write_run(tmp_path, f"b{seed}", 2, seed, loss + 0.001 + seed * 1e-6)
    summary = write_report([tmp_path], tmp_path / "report")
    assert "the difference is 0.0010, not significant" in summary
    expected = (
        "over the 3 seeds that both have: the first is better with 3, and on average by 0.001"
    )
    assert f"Seed by seed, {expected}" in summary
    assert "(paired t-test: p < 0.001)." in summary


def test_another_metric_ranks_as_a_choice_after_the_fact(tmp_path: Path) -> None:
    """By val/loss rate 1 is best, by test/nmi rate 2, by test/loss rate 1 again, with baselines."""
    for lr, nmi in ((1, 0.4), (2, 0.6)):
        loss = lr / 100
        metrics = {"val/loss": loss, "test/loss": loss, "test/nmi": nmi}
        write_run(tmp_path, str(lr), lr, 0, loss, metrics=metrics)
    write_run(tmp_path, "3", 3, 0, 0.03)
    summary = write_report([tmp_path], tmp_path / "report", Criterion("test/nmi", "max"))
    assert "Best test/nmi: 0.6000 with optimizer.lr=2, seed 0." in summary
    assert "Ranked by test/nmi, highest first: a choice after the fact." in summary
    assert "selected by val/loss" in summary
    assert "1 of 3 completed runs have no test/nmi and are left out." in summary
    assert "mean image" not in summary
    page = read_page(tmp_path / "report" / "report.html")
    assert "a choice after the fact" in page.words
    assert page.rows[0][:2] == ["completed", "0.6000"]
    summary = write_report([tmp_path], tmp_path / "report", Criterion("test/loss"))
    assert "Best test/loss: 0.0100 with optimizer.lr=1, seed 0 (mean image 0.0675)." in summary
    assert "0.15x" in summary, "0.0100 / 0.0675"
    with pytest.raises(ValueError, match="test/nmi: say whether higher or lower is better"):
        write_report([tmp_path], tmp_path / "report", Criterion("test/nmi"))
    with pytest.raises(ValueError, match=r"val/nmi: no completed run has this metric; choose"):
        write_report([tmp_path], tmp_path / "report", Criterion("val/nmi", "max"))


def test_a_running_sweep_shows_how_far_it_is(tmp_path: Path) -> None:
    """Of four jobs one is completed, one failed, one runs elsewhere and one is about to start."""
    plan_jobs(tmp_path, **{name: f"optimizer.lr={n}" for n, name in enumerate("abcd", 1)})
    write_run(tmp_path, "a", 1, 0, 0.05)
    write_run(tmp_path, "b", 2, 0, None)
    write_run(tmp_path, "c", 3, 0, 0.05, status="interrupted")
    path = tmp_path / "report" / "report.html"
    with directory_lock(tmp_path / "c"):
        live.write_page(tmp_path, started="d")
    page = read_page(path)
    assert "2 of 4 jobs ended" in page.words
    assert [row[0] for row in page.rows] == ["running", "running", "failed", "completed"]
    assert "0.0500 optimizer.lr=1" in page.words
    assert "min left" in page.words or "minute left" in page.words
    assert "data-written" in str(page.elements), "it reloads itself"
    live.write_page(tmp_path, is_interrupted=True)
    page = read_page(path)
    assert "Interrupted" in page.words
    assert "data-written" not in str(page.elements)
    write_report([tmp_path], tmp_path / "report")
    assert "data-written" not in path.read_text(encoding="utf-8")


def test_a_changed_result_is_read_again(tmp_path: Path) -> None:
    """The standing of a job is kept until its file is replaced."""
    write_run(tmp_path, "a", 1, 0, 0.05)
    first = progress.read_standing(tmp_path / "a")
    assert first is progress.read_standing(tmp_path / "a")
    path = tmp_path / "a" / "results.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"status": "failed", "error": "no"}))
    second = progress.read_standing(tmp_path / "a")
    assert second is not None
    assert (second.status, second.error, second.score) == ("failed", "no", None)


def test_a_plan_that_grew_is_read_again(tmp_path: Path) -> None:
    """A directory without a plan has no jobs; then those of the plan as it is, read once."""
    assert progress.read_jobs(tmp_path) == {}
    plan_jobs(tmp_path, a="seed=0")
    first = progress.read_jobs(tmp_path)
    assert [*first] == ["a"]
    assert progress.read_jobs(tmp_path) is first
    plan_jobs(tmp_path, a="seed=0", b="seed=1")
    assert [*progress.read_jobs(tmp_path)] == ["a", "b"]


@pytest.mark.slow
def test_a_thousand_runs_are_reported_in_seconds(tmp_path: Path) -> None:
    """In less than 10 s of a processor, and less than 5 MB; the page of a sweep in a tenth of it.

    The first page of a sweep reads the results; each later one only what has changed.
    """
    write_runs(tmp_path, 1000)
    start = time.process_time()
    write_report([tmp_path], tmp_path / "report")
    assert time.process_time() - start < 10
    page = tmp_path / "report" / "report.html"
    assert page.stat().st_size < 5e6
    assert len(read_page(page).rows) == 1000
    plan_jobs(tmp_path, **{f"{n:012x}": f"seed={n}" for n in range(300)})
    live.write_page(tmp_path)
    start = time.process_time()
    live.write_page(tmp_path)
    assert time.process_time() - start < 0.1
    assert len(read_page(page).rows) == live.MAX_ROWS


def test_the_page_of_a_run_has_its_course_its_pictures_and_its_failure(tmp_path: Path) -> None:
    """A completed run shows curves and pictures; a failed one its error and the end of its log."""
    write_runs(tmp_path, 50)
    runs = sorted(tmp_path.iterdir())
    for run in (runs[0], runs[-1]):
        write_run_page(run)
    page = read_page(runs[0] / "report.html")
    assert "0.0424" in page.words, "the test loss"
    sources = [values["src"] or "" for tag, values in page.elements if tag == "img"]
    assert [source.partition(",")[0] for source in sources] == ["data:image/png;base64"]
    assert [tag for tag, _ in page.elements].count("circle") == 40, "20 epochs of two losses"
    failed = read_page(runs[-1] / "report.html")
    assert "RuntimeError: out of memory" in failed.words
    assert "epoch 20/20" in failed.words
    write_report([runs[0]], tmp_path / "report")
    assert "digitlab run" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")


def test_learning_curves_are_means_over_seeds(tmp_path: Path) -> None:
    """Losses 1 and 3 in epoch 1, 0.5 alone in epoch 2: means 2 and 0.5, spreads sqrt(2) and 0."""
    histories = [
        {"epoch": [1.0, 2.0], "val/loss": [1.0, 0.5]},
        {"epoch": [1.0, 2.0], "val/loss": [3.0, float("nan")]},
    ]
    curve = curves.average("lr=1", histories, "val/loss")
    assert (curve.epochs, curve.means, curve.seeds) == ([1.0, 2.0], [2.0, 0.5], 2)
    assert curve.spreads == pytest.approx([2**0.5, 0.0])


def test_the_front_holds_what_nothing_beats() -> None:
    """Of (1, 5), (2, 5), (2, 3), (3, 4), (4, 1) the second and fourth are beaten."""
    x, y = np.array([1, 2, 2, 3, 4]), np.array([5, 5, 3, 4, 1])
    assert curves.find_front(x, y).tolist() == [True, False, True, False, True]


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.0501, 0.0699], ["0.05", "0.055", "0.06", "0.065", "0.07"]),
        ([0.001, 1000], ["0.001", "0.01", "0.1", "1", "10", "100", "1000"]),
        ([5, 5], ["4.8", "4.9", "5", "5.1", "5.2"]),
    ],
)
def test_ticks_are_round(values: list[float], ticks: list[str]) -> None:
    """Steps of 1, 2 or 5, decades where the values span many, and room around a single value."""
    scale = charts.Scale(values, charts.Axis(""), 0, 100)
    assert list(scale.ticks(5)) == ticks


def test_a_chart_holds_its_values_and_no_markup_of_others() -> None:
    """Each point has its text; a name is escaped; a far baseline is named, not drawn."""
    points = [charts.Point(1, 2, "lr=1: 2"), charts.Point(2, 3, CRAFTED, 0.5)]
    series = charts.Series(CRAFTED, points)
    svg = str(charts.draw([series], charts.Axis(CRAFTED), charts.Axis("y"), {CRAFTED: 100.0}))
    assert "<title>lr=1: 2</title>" in svg
    assert "<img" not in svg
    assert re.search(r"off the chart: .* 100", svg)
    assert "refline" not in svg


def test_settings_that_interact_are_named(tmp_path: Path) -> None:
    """The best rate is 1 with momentum 0 and 2 with 9; momentum 0 is best at both rates."""
    for lr, momentum, loss in ((1, 0, 0.01), (2, 0, 0.03), (1, 9, 0.06), (2, 9, 0.05)):
        optimizer = {"name": "sgd", "lr": lr, "momentum": momentum}
        config = {"seed": 0, "optimizer": optimizer}
        write_run(tmp_path, f"{lr}{momentum}", lr, 0, loss, config=config)
    write_report([tmp_path], tmp_path / "report")
    page = read_page(tmp_path / "report" / "report.html")
    cases = "1 with optimizer.momentum=0, 2 with optimizer.momentum=9"
    assert f"The best optimizer.lr depends on the other settings: {cases}." in page.words
    assert "The best optimizer.momentum depends" not in page.words, "0 is best at both rates"
    labels = [values.get("aria-label") for tag, values in page.elements if tag == "svg"]
    # Momentum: from 0.06 to 0.01 and from 0.05 to 0.03; rate: from 0.03 to 0.01 and 0.06 to 0.05.
    assert "optimizer.momentum 0.0350; optimizer.lr 0.0150" in labels
