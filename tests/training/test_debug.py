"""Debug runs, tags, notes and uncommitted changes: what they add to a run, and what they do not."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import ListConfig

import digitlab
from digitlab import app
from digitlab.config import schema, validation
from digitlab.report.page import write_report
from digitlab.runs import provenance
from digitlab.runs.provenance import make_run_id
from digitlab.runs.restore import resumed
from digitlab.runs.results import check_same_run, run_state
from digitlab.training.experiment import run_experiment

from ..conftest import compose, error_message, load_results, run_in_process
from ..report.test_report import write_run


def small(tiny: Path) -> list[str]:
    """Return a short k-means run."""
    data = [f"data.root={tiny}", "data.verify=false", "data.source=files", "data.batch_size=2"]
    return ["model=kmeans", "init=sample", "trainer.accelerator=cpu", *data]


@pytest.mark.parametrize("name", schema.choices("debug"))
def test_a_debug_run_trains_little_and_says_so(name: str, tiny: Path, tmp_path: Path) -> None:
    """Fast: one of 4 blocks of 64 minibatches. Overfit: 256 images, not 600. Profile: one epoch.

    A debug run of k-means is completed, with its figures, a mark, a warning and an id of its own.
    """
    command = [*small(tiny), "data.val_size=100", f"debug={name}"]
    if name == "overfit":
        command.remove("data.val_size=100")
        command.append("trainer.max_epochs=2")
    outcome = run_in_process(command, tmp_path)
    assert (outcome["status"], outcome["debug"]) == ("completed", name)
    assert f"A debug run (debug={name}): reports list it unranked." in outcome["warnings"]
    steps = {"fast": (1, 64), "overfit": (2, 256), "profile": (1, 250)}
    assert (outcome["epochs"], outcome["steps"]) == steps[name]
    assert outcome["objective"]["name"] == ("train/loss" if name == "overfit" else "val/loss")
    assert (tmp_path / "figures" / "centers.png").is_file()
    profiles = {path.name: path.read_text() for path in tmp_path.glob("fit-profile*")}
    assert list(profiles) == (["fit-profile.txt"] if name == "profile" else [])
    assert all("run_training_batch" in text for text in profiles.values())
    (plain,) = compose(*(word for word in command if not word.startswith("debug=")))
    assert outcome["run_id"] != make_run_id(validation.to_plain(plain))
    with pytest.raises(ValueError, match="a run of another configuration"):
        check_same_run(tmp_path, make_run_id(validation.to_plain(plain)))


def test_debug_runs_of_a_grid_have_a_folder_of_their_own() -> None:
    """A grid's name gets a suffix, another sweep's name has the word; tags and notes name none."""

    def name(*words: str) -> str:
        return app.sweep_name(ListConfig(words))

    assert name("sweep=kmeans/init", "debug=fast") == "kmeans/init_debug-fast"
    assert name("debug=fast,overfit", "sweep=kmeans/init") == "kmeans/init_debug"
    assert name("sweep=kmeans/init", "debug=null") == "kmeans/init"
    assert name("optimizer.lr=1,2", "debug=fast") == "debug-fast_optimizer.lr"
    assert name("optimizer.lr=1,2", "tags=[a,b]", "note=c") == "optimizer.lr"


def test_reports_list_debug_runs_and_do_not_rank_them(tmp_path: Path) -> None:
    """The best loss is a debug run's, with another setting: the report is that of the others."""
    for lr, loss in ((1, 0.05), (2, 0.06)):
        write_run(tmp_path, str(lr), lr, 0, loss)
    settings = {"seed": 0, "optimizer": {"lr": 1}, "trainer": {"debug": "fast"}}
    write_run(tmp_path, "3", 3, 0, 0.01, debug="fast", config=settings, warnings=["A debug run"])
    write_run(tmp_path, "4", 3, 0, None, debug="fast", config=settings)
    summary = write_report([tmp_path], tmp_path / "report")
    assert "4 jobs: 2 completed, 1 debug, 1 failed." in summary
    assert "1 debug run: listed, not ranked." in summary
    assert "Best val/loss: 0.0500 with optimizer.lr=1, seed 0" in summary
    table = digitlab.runs_table(tmp_path).set_index("run_id")
    assert list(table.status) == ["completed", "completed", "debug", "failed"]
    assert list(table.debug) == ["", "", "fast", "fast"]
    assert table.score.isna().tolist() == [False, False, True, True]
    assert "trainer.debug" not in "".join(table.setting)
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert 'value="debug"' in page, "a status to filter by"
    for run in "12":
        (tmp_path / run / "results.json").unlink()
    summary = write_report([tmp_path], tmp_path / "report")
    assert "2 jobs: 1 debug, 1 failed." in summary
    assert "Best" not in summary


def test_tags_and_notes_stay_with_a_run(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They change no id; a finished run is not trained again for others and keeps its own.

    A run that runs again or continues keeps them as well, unless the command has others.
    """
    caplog.set_level("INFO", "digitlab")
    command = [*small(tiny), "data.val_size=100", "trainer.max_epochs=1"]
    first = run_in_process([*command, "tags=[b,a,b]", "note=why not"], tmp_path)
    assert (first["tags"], first["note"]) == (["b", "a"], "why not")
    (cfg,) = compose(*command)
    assert first["run_id"] == make_run_id(validation.to_plain(cfg))
    before = (tmp_path / "results.json").read_bytes()
    run_in_process([*command, "tags=[c]"], tmp_path)
    assert (tmp_path / "results.json").read_bytes() == before
    assert "It keeps its tags and its note" in caplog.text
    words = [f"resume={tmp_path}", "tags=[c]", "force=true"]
    (cfg,) = compose(*words)
    run_experiment(resumed(cfg, words), tmp_path)
    again = load_results(tmp_path)
    assert (again["tags"], again["note"]) == (["c"], "why not")
    assert run_state(tmp_path) == "completed"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("tags=a", "tags=a: must be a list, as tags=[a,b]"),
        ("tags=a,b", "several values are a sweep, for which add -m; a list is tags=[a,b]"),
        ("tags=['a b']", "each of at most 40 letters, digits or ._+-, as [baseline,try2]"),
        (f"tags=[{'a' * 41}]", "each of at most 40 letters, digits or ._+-"),
        (f"note={'a' * 501}", "must be one line of at most 500 characters"),
        ("note='a\nb'", "must be one line of at most 500 characters"),
        ("-m note=a,b", "jobs must not differ in this key alone"),
        ("debug=slow", "debug=slow: must be one of fast, overfit, profile"),
        ("trainer.debug=true", "trainer.debug=True: must be a word"),
    ],
)
def test_a_mistake_in_them_is_told_in_a_line(words: str, message: str) -> None:
    """The value received, the rule and an example."""
    command = words.split() if words.startswith("-m") else [words]
    assert message in error_message(*command)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a repository with a package in a folder, in the place of digitlab's."""
    package = tmp_path / "repository" / "src"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("a = 1\n")
    (package.parent / "values.yaml").write_text("a: 1\n")
    user = ["-c", "user.name=me", "-c", "user.email=me@here", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "."], [*user, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *words], cwd=package.parent, check=True)
    monkeypatch.setattr(provenance, "PACKAGE", package)
    yield package
    forget_code()


def forget_code() -> None:
    """Let the code be read again."""
    provenance.code_version.cache_clear()
    provenance.code_diff.cache_clear()


def test_uncommitted_changes_are_kept(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the checkout, cut at a megabyte; nothing of a clean one, without git or a checkout."""
    path = tmp_path / "code.diff"

    def save() -> bytes | None:
        forget_code()
        provenance.save_code_diff(tmp_path)
        return path.read_bytes() if path.exists() else None

    assert save() is None
    values = repository.parent / "values.yaml"
    values.write_text("a: 2\n")
    diff = save()
    assert diff is not None
    assert b"+++ b/values.yaml" in diff
    assert diff.endswith(b"-a: 1\n+a: 2\n")
    values.write_text("b: 1\n" * 400_000)
    diff = save()
    assert diff is not None
    assert diff.endswith(b"+b: 1\n\nCut here: the diff is longer than 1,000,000 bytes.\n")
    assert len(diff) < 1_000_100
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        assert save() is None, "no git, and the earlier file describes other code"
    (tmp_path / "installed").mkdir()
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path / "installed")
    assert save() is None
