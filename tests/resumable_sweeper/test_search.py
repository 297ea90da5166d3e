"""A search with Optuna: what it tries, what it reuses, and that it survives being killed."""

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from hydra_plugins.resumable_sweeper import jobs, report_step
from hydra_plugins.resumable_sweeper.config import ResumableOptunaSweeperConf
from tests.resumable_sweeper.conftest import Application, killed, needs

optuna = pytest.importorskip("optuna")
from hydra_plugins.resumable_sweeper import _space, _study  # noqa: E402

# Reports five steps, each from a checkpoint on; does not know what runs it.
APP = """
import os, time
from pathlib import Path
import hydra
from hydra.core.hydra_config import HydraConfig
from hydra_plugins.resumable_sweeper import Pruned, report_step

def note(line):
    file = os.open(os.environ["DONE"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, f"{line}\\n".encode())

def loss(cfg, step):
    return (cfg.x - 1) ** 2 + cfg.size + 1 / (step + 1)

@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg):
    if str(cfg.size) == os.environ.get("FAIL"):
        raise RuntimeError("no luck")
    directory = Path(HydraConfig.get().runtime.output_dir)
    checkpoint = directory / "step"
    for step in range(int(checkpoint.read_text()) if checkpoint.exists() else 0, 5):
        time.sleep(cfg.sleep)
        note(f"{directory.name} {step}")
        if report_step(loss(cfg, step), step):
            raise Pruned
        part = directory / "part"
        part.write_text(str(step + 1))
        part.replace(checkpoint)
    return loss(cfg, 4)

if __name__ == "__main__":
    main()
"""
CONFIG = """
defaults: [_self_, {override hydra/sweeper: resumable_optuna}]
x: 0
size: 1
sleep: 0
hydra:
  sweep: {dir: out}
"""
SPACE = ("x=interval(-3,3)", "size=1,2,3")
DRY = "hydra.sweeper.dry_run=true"


def n_trials(number: int) -> str:
    """The override of a search for so many trials."""
    return f"hydra.sweeper.n_trials={number}"


@pytest.fixture
def searched(app: Application) -> Application:
    """The application, with a search as its sweeper."""
    app.write("app.py", APP)
    app.write("conf/config.yaml", CONFIG)
    return app


def trials(app: Application) -> list[Any]:
    """The trials in the journal, as optuna-dashboard reads them."""
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(app.folder / "out" / _study.JOURNAL))
    )
    (name,) = optuna.get_all_study_names(storage)
    return list(optuna.load_study(study_name=name, storage=storage).trials)


def summary(app: Application) -> list[tuple[Any, ...]]:
    """What was tried, in order, and what came of it."""
    return [(t.params, t.state.name, t.value, t.intermediate_values) for t in trials(app)]


def finished(app: Application) -> dict[str, float]:
    """When each finished job finished."""
    records = {path: json.loads(path.read_text()) for path in app.folder.glob("out/*/.job.json")}
    return {
        path.parent.name: record["time"]
        for path, record in records.items()
        if record["status"] in jobs.FINISHED
    }


# -- the space ---------------------------------------------------------------------------------


def space(*lines: str) -> _space.Space:
    """The space that some overrides describe."""
    return _space.make_space(OverridesParser.create().parse_overrides(list(lines)))


def test_hydras_grammar_describes_the_space() -> None:
    """Intervals, ranges without their ends, lists as categories, and fixed values."""
    made = space(
        "lr=tag(log,interval(1e-4,1e-1))",
        "latent=range(4,33)",
        "width=tag(log,range(1,9))",
        "layers=int(interval(1,3))",
        "rate=range(0.1,0.5,0.1)",
        "channels=choice(base,wide)",
        "batch=32,64",
        "model=a",
    )
    distributions = optuna.distributions
    assert made.distributions == {
        "lr": distributions.FloatDistribution(1e-4, 1e-1, log=True),
        "latent": distributions.IntDistribution(4, 32),
        "width": distributions.IntDistribution(1, 8, log=True),
        "layers": distributions.IntDistribution(1, 3),
        "rate": distributions.FloatDistribution(0.1, 0.4, step=0.1),
        "channels": distributions.CategoricalDistribution(["base", "wide"]),
        "batch": distributions.CategoricalDistribution(["32", "64"]),
    }
    assert made.fixed == {"model": "model=a"}
    assert made.size is None
    assert space("a=1,2,3", "b=range(2)").size == 6


def test_a_job_of_a_grid_is_read_as_a_point_of_the_space() -> None:
    """By values, not by their spelling; a key that it does not name has its default."""
    made = space(
        "lr=tag(log,interval(1e-4,1))", "rate=range(0.1,0.9,0.1)", "on=true,false", "n=4,8"
    )
    params = made.read(["lr=1e-1", "rate=0.2", "on=true"], {"n": 8})
    assert params == {"lr": 0.1, "rate": 0.2, "on": "True", "n": "8"}
    assert made.lines(params) == ["lr=0.1", "rate=0.2", "on=True", "n=8"]
    assert made.read(["lr=2", "rate=0.2", "on=true"], {"n": 8}) is None
    assert made.read(["lr=1", "rate=0.25", "on=true"], {"n": 8}) is None
    assert made.read(["lr=1", "rate=0.2", "on=1"], {"n": 8}) is None


@pytest.mark.parametrize(
    ("line", "value", "short"),
    [
        ("x=tag(log,interval(1e-5,1))", 0.00012345678, 0.0001235),
        ("x=interval(-3,3.5)", -2.123456, -2.123),
        ("x=interval(100.0,30000)", 29876.54321, 29880.0),
        ("x=interval(1000.0,1000.5)", 1000.1234567, 1000.1235),
        ("x=interval(0,0.123454)", 0.123454, 0.123454),
        ("x=interval(-1.5,1)", 0.0, 0.0),
        ("x=range(0.1,0.5,0.1)", 0.30000000000000004, 0.30000000000000004),
    ],
)
def test_numbers_of_an_interval_have_four_digits(line: str, value: float, short: float) -> None:
    """More where the interval is narrow, and never outside of it; steps stay as they are."""
    assert space(line).shorten({"x": value}) == {"x": short}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a=tag(log,interval(0,1))", "begins above 0"),
        ("a=interval(2,1)", "the lower one first"),
        ("a=tag(log,choice(1,2))", "not a list"),
        ("a=tag(log,range(1,9,2))", "integers with step 1"),
        ("a=tag(lin,interval(0,1))", "use log"),
        ("a=1", "nothing to search"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(line: str, message: str) -> None:
    """The message names the override and the rule."""
    with pytest.raises(ValueError, match=message):
        space(line)


def test_an_interval_in_a_grid_is_refused_with_the_search_as_remedy() -> None:
    """A grid needs a list of values."""
    parsed = OverridesParser.create().parse_overrides(["a=interval(0,1)"])
    with pytest.raises(ValueError, match=r"hydra/sweeper=resumable_optuna .*n_trials=40"):
        jobs.expand(parsed)


def test_a_report_outside_a_search_changes_nothing() -> None:
    """The same application runs alone."""
    assert report_step(1.0, 0) is False


def test_only_jobs_that_the_search_asked_for_are_trials(tmp_path: Path) -> None:
    """In whatever state. A run that confirms the best trial is not a trial."""
    sampler = {"_target_": "optuna.samplers.RandomSampler"}
    study = _study.Study(tmp_path, "a", "minimize", sampler, None, write=True)
    study.add(study.ask(space("x=interval(0,1)"), 0, 0), "first")
    assert _study.is_trial(tmp_path, "first")
    study.tell(study.running()[0], optuna.trial.TrialState.COMPLETE, 1.0)
    assert _study.is_trial(tmp_path, "first")
    assert not _study.is_trial(tmp_path, "again")
    assert not _study.is_trial(tmp_path / "elsewhere", "first")


# -- searching ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_n_trials_is_a_total_that_a_later_command_continues_to(searched: Application) -> None:
    """A dry run writes nothing; 8 trials, then 4 more, as 12 at once would be; some are pruned."""
    out = searched.run(*SPACE, n_trials(8), DRY).stdout
    assert "x  numbers from -3.0 to 3.0" in out
    assert "size  one of 1, 2, 3" in out
    assert "known: nothing" in out
    assert not (searched.folder / "out").exists()
    (first,) = (line.split("  ")[-1] for line in out.splitlines() if "  new  " in line)
    searched.run(*SPACE, n_trials(8))
    params = trials(searched)[0].params
    # What is printed is what ran and what Optuna knows: four digits.
    assert len(first.partition(" ")[0].lstrip("x=-0.").replace(".", "")) <= 4
    assert first == f"x={params['x']!r} size={params['size']}"
    files = {path: path.stat().st_mtime_ns for path in (searched.folder / "out").rglob("*")}
    assert "8 of 8 trials" in searched.run(*SPACE, n_trials(8), DRY).stdout
    assert files == {path: path.stat().st_mtime_ns for path in (searched.folder / "out").rglob("*")}
    searched.run(*SPACE, n_trials(12))
    lines = searched.lines()
    out = searched.run(*SPACE, n_trials(12)).stdout
    assert searched.lines() == lines
    assert {t.state.name for t in trials(searched)} == {"COMPLETE", "PRUNED"}
    best = min((t for t in trials(searched) if t.state.name == "COMPLETE"), key=lambda t: t.value)
    assert f"Best: Trial {best.number} completed {best.value:.6g}" in out
    interrupted = summary(searched)
    assert len(interrupted) == len(finished(searched)) == 12
    (searched.folder / "out").rename(searched.folder / "before")
    searched.run(*SPACE, n_trials(12))
    assert summary(searched) == interrupted


@pytest.mark.slow
def test_results_of_a_grid_are_known_and_a_finite_space_ends(searched: Application) -> None:
    """Nothing is tried twice, and a search of 4 points ends after the 2 that a grid left."""
    grid = ("hydra/sweeper=resumable", "hydra.sweep.dir=out")
    searched.run(*grid, "x=1,2", "size=5")
    assert len(finished(searched)) == 2
    confirm = 'hydra.sweeper.confirm=["+seed=1","+seed=2"]'
    out = searched.run("x=1,2,3,4", "size=5", n_trials(10), confirm).stdout
    assert "All 4 points of the space are known: the search ends" in out
    # The best one runs again, and is no trial then.
    assert "Again with +seed=1: 5.2" in out
    assert len(searched.lines()) == (4 + 2) * 5
    assert [t.user_attrs.get("known", False) for t in trials(searched)] == [True] * 2 + [False] * 2
    # The grid knows the search's jobs as well.
    assert "4 of 4 jobs already completed" in searched.run(*grid, "x=1,2,3,4", "size=5").stdout


@pytest.mark.slow
def test_a_failing_trial_stops_no_other_and_is_retried(searched: Application) -> None:
    """The exit code is 1; the next command runs the failed trials again and no other."""
    searched.write("conf/config.yaml", CONFIG + "  sweeper: {params: {size: 'range(6)'}}\n")
    error = searched.run("hydra.sweeper.pruner=null", n_trials(6), code=1, FAIL="2").stderr
    assert "1 of 6 trials not completed" in error
    assert len(finished(searched)) == 5
    searched.run("hydra.sweeper.pruner=null", n_trials(6))
    assert len(finished(searched)) == 6
    assert len(searched.lines()) == 6 * 5
    states = [t.state.name for t in trials(searched)]
    assert (states.count("COMPLETE"), states.count("FAIL")) == (6, 1)


@pytest.mark.slow
@needs("joblib")
def test_several_trials_run_at_a_time(searched: Application) -> None:
    """`n_jobs` are handed to the launcher; the workers report and are pruned like others."""
    searched.run(*SPACE, n_trials(12), "hydra.sweeper.n_jobs=2", "hydra/launcher=joblib")
    states = {t.state.name for t in trials(searched)}
    assert len(trials(searched)) == len(finished(searched)) == 12
    assert states == {"COMPLETE", "PRUNED"}


@pytest.mark.slow
def test_several_commands_share_a_search(searched: Application) -> None:
    """Each asks for its next trial when it is ready; none is run twice, and both end well."""
    command = (*SPACE, n_trials(12), "sleep=0.05")
    processes = [searched.start(*command) for _ in range(2)]
    for process in processes:
        out, error = process.communicate(timeout=300)
        assert process.returncode == 0, out + error
    assert len(trials(searched)) == len(finished(searched)) == 12
    assert len(searched.lines()) == len(set(searched.lines()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (SPACE, "hydra.sweeper.n_trials=null: says how many trials"),
        (("x=1", n_trials(2)), "nothing to search"),
        (("y=1,2", n_trials(2)), "Could not override 'y'"),
        ((*SPACE, n_trials(2), "hydra.sweeper.sampler._target_=no.Such"), "hydra.sweeper.sampler="),
        ((*SPACE, n_trials(2), "hydra.sweeper.direction=up"), "must be minimize or maximize"),
    ],
)
def test_a_mistake_is_reported_before_anything_is_written(
    searched: Application, arguments: tuple[str, ...], message: str
) -> None:
    """With the option and the rule, and no traceback."""
    error = searched.run(*arguments, code=1).stderr
    assert message in error
    assert "Traceback" not in error
    assert not (searched.folder / "out").exists()


def test_a_line_that_a_killed_process_did_not_finish_is_removed(tmp_path: Path) -> None:
    """Optuna's journal would be unreadable once a line follows it."""
    journal = tmp_path / _study.JOURNAL
    study = optuna.create_study(storage=_study.open_storage(tmp_path), study_name="a")
    with journal.open("a") as file:
        file.write('{"op_code": 4, "wor')
    study.ask()
    assert len(optuna.load_study(study_name="a", storage=_study.open_storage(tmp_path)).trials) == 1


def test_the_default_pruner_keeps_the_best_quarter() -> None:
    """After trials of 1 to 5 the quarter is 2: 1.9 goes on, 2.1 does not, at the same step."""
    options = ResumableOptunaSweeperConf().pruner
    study = optuna.create_study(pruner=_study.make_pruner(options))
    for value in (1.0, 2.0, 3.0, 4.0, 5.0):
        trial = study.ask()
        trial.report(value, 0)
        assert not trial.should_prune(), "the first five run to their end"
        study.tell(trial, value)
    for value, is_pruned in ((1.9, False), (2.1, True)):
        trial = study.ask()
        trial.report(value, 0)
        assert trial.should_prune() == is_pruned


@pytest.mark.slow
def test_a_search_survives_being_killed_at_any_moment(searched: Application) -> None:
    """SIGKILL of all processes, ten times: 40 trials as without, none finished twice."""
    rng = random.Random(0)
    command = (*SPACE, n_trials(40), "sleep=0.02")
    journal = searched.folder / "out" / _study.JOURNAL
    before: dict[str, float] = {}
    kills = 0
    while kills < 10:
        size = journal.stat().st_size if journal.exists() else 0
        steps = len(searched.lines()) + rng.randrange(12)
        process = searched.start(*command)
        # From the first thing that it writes on, and not by time: a fast machine would be done.
        while process.poll() is None and (
            not journal.exists() or journal.stat().st_size == size or len(searched.lines()) < steps
        ):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.05))
        kills += 1
        killed(process)
        after = finished(searched)
        # A job that ran again would have another record.
        assert before.items() <= after.items()
        before = after
    assert 0 < len(before) < 40
    searched.run(*command)
    assert before.items() <= finished(searched).items()
    disturbed = summary(searched)
    assert len(disturbed) == len(finished(searched)) == 40
    assert {state for _, state, _, _ in disturbed} == {"COMPLETE", "PRUNED"}
    # A trial that was killed went on from its checkpoint, perhaps with the step it was at.
    done = searched.lines()
    assert len(done) - len(set(done)) <= kills
    (searched.folder / "out").rename(searched.folder / "before")
    searched.run(*command)
    assert summary(searched) == disturbed
