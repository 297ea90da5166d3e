"""The jobs of a sweep: composed as Hydra does, named by their values, planned on disk."""

import copy
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.resumable_sweeper import jobs
from hydra_plugins.resumable_sweeper.jobs import Job, SweepTask

FILES = {
    "config.yaml": """
defaults:
  - _self_
  - model: small
  - optional noise@data.noise: null
  - override hydra/sweeper: resumable
lr: 0.1
seed: 0
name: '${model.name}_${lr}'
shown: '${oc.decode:${model.width}}'
tags: [a, b]
data: {root: here, size: '???', shape: {h: 1, w: 2}}
missing_ok: null
hydra:
  job:
    name: app_${seed}
    config: {override_dirname: {exclude_keys: [seed]}}
  sweep: {dir: out}
  run: {dir: 'out/${hydra.job.override_dirname}'}
""",
    "model/small.yaml": "name: small\nwidth: 2\nopts: {a: 1}\n",
    "model/large.yaml": "defaults: [base]\nname: large\nwidth: 8\n",
    "model/base.yaml": "depth: 3\nopts: {b: '${lr}'}\n",
    "noise/white.yaml": "sigma: 0.5\n",
    "experiment/first.yaml": """
# @package _global_
defaults:
  - override /model: large
lr: 3
data: {size: 7}
""",
}
# Overrides that jobs are made of; many do not fit each other, which both must say alike.
PIECES = [
    *(f"lr={value}" for value in (0.5, "1e-3", "nan", "null", "'a b'", "${seed}")),
    *(f"seed={value}" for value in (1, 2, 3)),
    *(f"model={value}" for value in ("small", "large", "none")),
    *(f"model.width={value}" for value in (1, 16)),
    *(f"data.root={value}" for value in ("there", "'a=b,c'", "${oc.env:HOME}", "'größe'")),
    *(f"data.size={value}" for value in (10, "${model.width}")),
    *(f"tags={value}" for value in ("[]", "[x,{y:1}]")),
    *(f"data.shape={value}" for value in ("{h:5}", "{w:6,h:7}")),
    *("data.shape=null", "data=null", "tags.0=z", "model={name:own}"),
    "data.shape.h=9",
    "model.opts={a:4}",
    "++model.opts.c=5",
    "+extra.deep=1",
    "+extra=[1,2]",
    "~missing_ok",
    "~model",
    "unknown=1",
    "noise@data.noise=white",
    "+experiment=first",
    "hydra.job.name=other",
    "hydra.job.env_set={A:b}",
    "++hydra.job.chdir=true",
    "name=plain",
    "shown=",
]


@pytest.fixture
def loader(tmp_path: Path) -> Iterator[Any]:
    """The config loader of an application with groups, packages and interpolations."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with initialize_config_dir(str(tmp_path), version_base="1.3", job_name="app"):
        yield GlobalHydra.instance().config_loader()


@pytest.fixture
def master(loader: Any) -> Any:
    """The configuration of a sweep."""
    return loader.load_configuration("config", [], run_mode=RunMode.MULTIRUN)


def job(values: dict[str, Any], ignored: tuple[str, ...] = (), name: str = "") -> Job:
    """A job with these values."""
    cfg = OmegaConf.create(values)
    identity = jobs.digest(cfg, ignored)
    return Job(name or identity, [f"{key}={value}" for key, value in values.items()], cfg, identity)


def expanded(*lines: str) -> list[list[str]]:
    """The grid of some overrides."""
    return jobs.expand(OverridesParser.create().parse_overrides(list(lines)))


# -- a grid ------------------------------------------------------------------------------------


def test_a_grid_holds_all_combinations_the_last_key_fastest() -> None:
    """Jobs come in the order of nested loops, with fixed values in each of them."""
    assert expanded("a=1,2", "fixed=x", "+b=range(2)") == [
        ["a=1", "fixed=x", "+b=0"],
        ["a=1", "fixed=x", "+b=1"],
        ["a=2", "fixed=x", "+b=0"],
        ["a=2", "fixed=x", "+b=1"],
    ]


def test_a_later_override_of_a_key_counts() -> None:
    """The command line, which comes last, replaces what `params` in the YAML says of a key."""
    assert expanded("a=1,2", "b=3", "a=7") == [["a=7", "b=3"]]


ODD = ["'a b'", "'x=1,y'", '"quo\\"ted"', "'größe'", "[1,{a:b}]", "'1'", "''", "{}", "'${lr}'"]


@pytest.mark.parametrize("value", ODD)
def test_odd_values_survive_a_grid(value: str) -> None:
    """A value with spaces, commas, quotes or brackets is the same value in a job's override."""
    parser = OverridesParser.create()
    original = parser.parse_override(f"a={value}").value()
    for grid in (expanded(f"a={value}", "b=1,2"), expanded(f"a={value},2")):
        restored = parser.parse_override(grid[0][0]).value()
        assert (restored, type(restored)) == (original, type(original))


@pytest.mark.parametrize(
    ("line", "message"), [("a=interval(0,1)", "needs a list"), ("a=range(3,3)", "has no value")]
)
def test_a_key_without_a_list_of_values_is_refused(line: str, message: str) -> None:
    """A continuous range and an empty one are no grid, and the message names the override."""
    with pytest.raises(ValueError, match=message) as raised:
        expanded(line, "b=1")
    assert line in str(raised.value)


# -- composition -------------------------------------------------------------------------------


def types(node: Any) -> Any:
    """The types and flags of a node and of all below it."""
    if not isinstance(node, DictConfig):
        return type(node).__name__
    flags = (OmegaConf.is_readonly(node), OmegaConf.is_struct(node), OmegaConf.get_type(node))
    # A node that is None or an interpolation has no keys.
    if not isinstance(OmegaConf.to_container(node), dict):
        return flags
    return flags, {key: types(node._get_node(key)) for key in node}


def composed(compose: Any, lines: list[str]) -> Any:
    """What a composition gives: its values, unresolved, with their types; or its error's type.

    Of several errors each may come first.
    """
    try:
        cfg = compose(lines)
    except Exception as error:
        return (type(error).__name__,)
    # The text, since nan differs from itself.
    return "config", repr(OmegaConf.to_container(cfg)), types(cfg)


@pytest.mark.slow
def test_a_job_is_composed_as_hydra_composes_it(loader: Any, master: Any) -> None:
    """For random overrides the composer returns Hydra's configuration, or raises its error."""
    rng = random.Random(0)
    composer = jobs.Composer(loader, master)
    parser = OverridesParser.create()
    results = []
    for _ in range(30):
        by_key: dict[str, str] = {}
        for line in rng.sample(PIECES, rng.randint(0, 6)):
            by_key.setdefault(parser.parse_override(line).get_key_element(), line)
        lines = list(by_key.values())
        ours = composed(composer.compose, lines)
        assert ours == composed(lambda words: loader.load_sweep_config(master, words), lines), lines
        results.append(ours[0])
    assert 8 < results.count("config") < 26


def test_hydra_composes_once_for_each_set_of_groups(loader: Any, master: Any) -> None:
    """Jobs that differ in plain values only share one composition."""
    composer = jobs.Composer(loader, master)
    for model in ("small", "large"):
        for lr in range(5):
            assert composer.compose([f"lr={lr}", f"model={model}"]).lr == lr
    assert len(composer.templates) == 2


# -- identity ----------------------------------------------------------------------------------


def test_a_digest_identifies_the_values() -> None:
    """The order of keys and of overrides does not count; each value and its type do."""
    assert jobs.digest(OmegaConf.create({"a": 1, "b": 2})) == jobs.digest(
        OmegaConf.create({"b": 2, "a": 1})
    )
    values: list[Any] = [1, 1.0, "1", True, None, [1], {"a": 1}, "", "größe"]
    assert len({jobs.digest(OmegaConf.create({"a": value})) for value in values}) == len(values)


def test_interpolations_count_by_their_values() -> None:
    """`b: ${a}` is the same job as the value of `a` written out."""
    written, linked = {"a": 1, "b": 1}, {"a": 1, "b": "${a}"}
    assert jobs.digest(OmegaConf.create(written)) == jobs.digest(OmegaConf.create(linked))


def test_ignored_keys_do_not_count() -> None:
    """Ignored keys, nested ones included, change no digest; a missing one does no harm."""
    ignored = ["root", "data.workers", "none.at.all", "seed.deeper"]
    first = OmegaConf.create({"root": "/a", "data": {"workers": 1, "size": 5}, "seed": 1})
    second = OmegaConf.create({"root": "/b", "data": {"workers": 8, "size": 5}, "seed": 1})
    third = OmegaConf.create({"root": "/b", "data": {"workers": 8, "size": 6}, "seed": 1})
    assert jobs.digest(first, ignored) == jobs.digest(second, ignored)
    assert jobs.digest(third, ignored) != jobs.digest(second, ignored)


def test_keys_of_several_types_have_a_digest() -> None:
    """OmegaConf allows numbers and booleans as keys beside strings."""
    cfg = OmegaConf.create({"labels": {0: "zero", "two": 2, True: "yes", 2.5: "x"}})
    assert len(jobs.digest(cfg)) == 12


TRANSIENT = [
    "${now:%H-%M-%S-%f}",
    "${hydra:runtime.output_dir}/ckpt",
    "${hydra:job.num}",
    "run_${hydra:job.id}",
    "${hydra:sweep.dir}",
]


def test_the_time_and_the_directory_do_not_count(loader: Any, master: Any) -> None:
    """An interpolation that changes from command to command leaves a job the job it was."""
    template = loader.load_sweep_config(master, ["+x=1", "+y=${x}", "data.size=1"])
    for text in TRANSIENT:
        digests = set()
        for number in range(3):
            cfg = copy.deepcopy(template)
            OmegaConf.clear_cache(cfg)
            cfg.x = text
            cfg.hydra.job.num = number
            cfg.hydra.job.id = f"app_{number}"
            cfg.hydra.sweep.dir = cfg.hydra.runtime.output_dir = f"out/{number}"
            digests.add(jobs.digest(cfg))
        cfg.data.size = 2
        assert len(digests) == 1, text
        assert jobs.digest(cfg) not in digests


def test_choices_of_groups_count_where_the_application_reads_them(
    loader: Any, master: Any, tmp_path: Path
) -> None:
    """`${hydra:runtime.choices.model}` tells groups apart whose files say the same."""
    (tmp_path / "model" / "copy.yaml").write_text(FILES["model/small.yaml"])
    lines = ["+choice='${hydra:runtime.choices.model}'"]
    first, second = (
        loader.load_sweep_config(master, [*lines, f"model={model}"]) for model in ("small", "copy")
    )
    assert jobs.digest(first) != jobs.digest(second)
    assert HydraConfig.instance().cfg is None


def test_what_nothing_resolves_counts_as_it_is_written() -> None:
    """An unset environment variable that no job may need refuses no sweep, as in Hydra."""
    values = {"a": 1, "entity": "${oc.env:NO_SUCH_VARIABLE}", "list": ["${nowhere}", "${a}"]}
    unresolved = jobs.task_values(OmegaConf.create(values))
    assert unresolved == values | {"list": ["${nowhere}", 1]}


def test_equal_jobs_run_once() -> None:
    """Of jobs with the same values the first one stays."""
    first, again, other = job({"a": 1}), job({"a": 1}), job({"a": 2})
    assert jobs.unique([first, again, other], []) == [first, other]


def test_jobs_that_differ_in_ignored_keys_alone_are_refused() -> None:
    """They would share a directory; the message names the key and its values."""
    pair = [job({"a": 1, "root": root}, ("root",)) for root in ("x", "y")]
    with pytest.raises(ValueError, match="root=x,y"):
        jobs.unique(pair, ["root"])


def test_two_configurations_in_one_directory_are_refused() -> None:
    """A directory's name that the user chose must tell the jobs apart."""
    pair = [job({"a": number}, name="same") for number in (1, 2)]
    with pytest.raises(ValueError, match=r"hydra.sweep.subdir=same.*a=1; a=2"):
        jobs.unique(pair, [])


def test_ignored_keys_are_resolved_by_the_command(
    loader: Any, master: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A worker with other environment variables gets the command's values.

    What depends on the job's directory is left to the job.
    """
    monkeypatch.setenv("ROOT", "/command")
    lines = ["+root=${oc.env:ROOT}", "+ckpt='${hydra:runtime.output_dir}/x'", "+data.where=${root}"]
    cfg = loader.load_sweep_config(master, lines)
    jobs.place(cfg, tmp_path, "name", ["root", "ckpt", "data.where", "no.such", "lr.deeper"])
    monkeypatch.setenv("ROOT", "/worker")
    assert (cfg.root, cfg.data.where) == ("/command", "/command")
    assert OmegaConf.is_interpolation(cfg, "ckpt")
    assert (cfg.hydra.sweep.dir, cfg.hydra.sweep.subdir) == (str(tmp_path), "name")


# -- the plan ----------------------------------------------------------------------------------


def test_the_plan_is_the_union_of_all_commands(tmp_path: Path) -> None:
    """A command adds its jobs and takes none away."""
    first, second, third = (job({"a": number}) for number in (1, 2, 3))
    jobs.extend_plan(tmp_path, [first, second], force=False)
    added = jobs.extend_plan(tmp_path, [second, third], force=False)
    assert list(added) == [second.name, third.name]
    plan = jobs.read_plan(tmp_path)
    assert list(plan) == [first.name, second.name, third.name]
    assert plan[third.name].lines == ["a=3"]


EXTEND = """
import sys
from pathlib import Path
from omegaconf import OmegaConf
from hydra_plugins.resumable_sweeper.jobs import Job, close_plan, extend_plan
worker = sys.argv[2]
for number in range(20):
    name = f"{worker}-{number}"
    job = Job(name, [f"a={name}"], OmegaConf.create({}), name)
    close_plan(Path(sys.argv[1]), extend_plan(Path(sys.argv[1]), [job], force=True))
"""


def test_commands_at_the_same_time_lose_no_jobs(tmp_path: Path) -> None:
    """Three processes extend and close one plan; each job of each of them is in it."""
    environment = os.environ | {"PYTHONPATH": str(Path(jobs.__file__).parents[2])}
    command = [sys.executable, "-c", EXTEND, str(tmp_path)]
    workers = [subprocess.Popen([*command, name], env=environment) for name in "xyz"]
    assert [worker.wait(timeout=60) for worker in workers] == [0, 0, 0]
    names = {f"{worker}-{number}" for worker in "xyz" for number in range(20)}
    assert jobs.read_plan(tmp_path).keys() == names


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"jobs": 1}', '{"jobs": [{"x": 1}]}'])
def test_a_damaged_plan_is_an_empty_one(tmp_path: Path, text: str) -> None:
    """A plan that something else damaged is written again; the jobs' directories tell the rest."""
    (tmp_path / jobs.PLAN).write_text(text)
    assert jobs.read_plan(tmp_path) == {}
    jobs.extend_plan(tmp_path, [job({"a": 1})], force=False)
    assert len(jobs.read_plan(tmp_path)) == 1


def test_force_lasts_until_its_jobs_had_their_turn(tmp_path: Path) -> None:
    """An interrupted forced command has one moment for all its continuations, then none."""
    work = job({"a": 1})
    first = jobs.extend_plan(tmp_path, [work], force=True)[work.name]
    assert first.since > 0
    continued = jobs.extend_plan(tmp_path, [work], force=True)
    assert continued[work.name].since == first.since
    jobs.close_plan(tmp_path, continued)
    assert jobs.read_plan(tmp_path)[work.name].since == 0
    assert jobs.extend_plan(tmp_path, [work], force=True)[work.name].since > first.since


def test_a_command_closes_nothing_that_another_requested_since(tmp_path: Path) -> None:
    """The end of one forced command does not end the force of a later one."""
    work = job({"a": 1})
    mine = jobs.extend_plan(tmp_path, [work], force=True)
    time.sleep(0.01)
    jobs.extend_plan(tmp_path, [work], force=True)
    jobs.close_plan(tmp_path, mine)
    assert jobs.read_plan(tmp_path)[work.name].since > 0


def test_a_start_is_dated_by_hydras_file(tmp_path: Path) -> None:
    """`.hydra/config.yaml` tells when a job started; without it, the directory does."""
    assert not jobs.started_since(tmp_path / "none", 1)
    os.utime(tmp_path, (100, 100))
    assert jobs.started_since(tmp_path, 100)
    assert not jobs.started_since(tmp_path, 0)
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra/config.yaml").touch()
    os.utime(tmp_path / ".hydra/config.yaml", (50, 50))
    assert not jobs.started_since(tmp_path, 51)
    assert jobs.started_since(tmp_path, 50)


def test_a_worker_takes_the_directory_from_the_plan(tmp_path: Path) -> None:
    """The last command that requested these overrides named the directory."""
    assert jobs.planned_name(tmp_path, ["a=1"]) is None
    for name in ("first", "second"):
        jobs.extend_plan(tmp_path, [job({"a": 1}, name=name)], force=False)
    assert jobs.planned_name(tmp_path, ["a=1"]) == "second"
    assert jobs.planned_name(tmp_path, ["a=2"]) is None


# -- records and locks -------------------------------------------------------------------------


class Launch:
    """Runs a task as Hydra runs a job of a sweep."""

    def __init__(self, sweep: Path) -> None:
        self.sweep, self.directory = sweep, sweep / "one"
        self.directory.mkdir()
        hydra = {
            "sweep": {"dir": str(sweep), "subdir": "one"},
            "runtime": {"output_dir": str(self.directory)},
        }
        self.cfg = OmegaConf.create({"a": 1, "hydra": hydra})

    def __call__(self, task: Any, *, force: bool = False) -> Any:
        """Plan the job and run it."""
        planned = Job("one", ["a=1"], self.cfg, jobs.digest(self.cfg))
        jobs.extend_plan(self.sweep, [planned], force=force)
        with jobs.hydra_settings(self.cfg):
            return SweepTask(task, keeps_record=True)(self.cfg)

    def state(self) -> str:
        """How the job stands."""
        return jobs.recorded_state(self.directory, "one")


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """A sweep with one job."""
    return Launch(tmp_path)


def test_a_record_tells_how_a_job_ended(launch: Launch) -> None:
    """new, running, completed, failed and interrupted, with the error in the record."""
    states = [launch.state()]

    def ends(error: BaseException | None) -> Any:
        def task(cfg: DictConfig) -> str:
            states.append(launch.state())
            if error:
                raise error
            return "result"

        return task

    with pytest.raises(RuntimeError):
        launch(ends(RuntimeError("no luck")))
    states.append(launch.state())
    assert (
        json.loads((launch.directory / jobs.RECORD).read_text())["error"] == "RuntimeError: no luck"
    )
    with pytest.raises(KeyboardInterrupt):
        launch(ends(KeyboardInterrupt()))
    states.append(launch.state())
    assert launch(ends(None)) == "result"
    states.append(launch.state())
    assert states == [
        *("new", "running", "failed", "running", "interrupted"),
        *("running", "completed"),
    ]


def test_a_completed_job_does_not_run_again_unless_forced(launch: Launch) -> None:
    """A second launch does nothing; a forced one runs the job once."""
    runs: list[DictConfig] = []
    launch(runs.append)
    launch(runs.append)
    assert len(runs) == 1
    # File systems date files in steps of some milliseconds.
    time.sleep(0.05)
    launch(runs.append, force=True)
    launch(runs.append, force=True)
    assert len(runs) == 2


def test_a_job_that_another_process_runs_is_left_to_it(launch: Launch) -> None:
    """While its lock is taken a job is running, and a second launch does nothing."""
    launch(lambda cfg: None)
    (launch.directory / jobs.RECORD).write_text('{"status": "running"}')
    with FileLock(launch.directory / jobs.LOCK):
        assert launch.state() == "running"
        assert launch(pytest.fail) is None
    assert launch.state() == "interrupted"


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 10_000])
def test_a_damaged_record_is_none(launch: Launch, text: str) -> None:
    """A job whose record cannot be read is a new one, and runs."""
    (launch.directory / jobs.RECORD).write_text(text)
    assert launch.state() == "new"
    runs: list[DictConfig] = []
    launch(runs.append)
    assert len(runs) == 1
    assert launch.state() == "completed"


def test_a_job_without_a_plan_fails_with_the_reason(launch: Launch) -> None:
    """A worker that sees another file system says so, and does not run the job."""
    launch(lambda cfg: None)
    launch.cfg.hydra.sweep.dir = "/nowhere"
    with jobs.hydra_settings(launch.cfg), pytest.raises(FileNotFoundError, match="has no plan"):
        SweepTask(pytest.fail, keeps_record=True)(launch.cfg)


def test_files_appear_whole(tmp_path: Path) -> None:
    """A write that fails leaves the old content, and no other file."""
    path = tmp_path / "file.json"
    jobs.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        jobs.write_json(path, {"a": object()})
    with pytest.raises(UnicodeEncodeError):
        jobs.write_text(path, "\ud800")
    assert jobs.read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]
