"""The sweeper, in applications that know nothing of it, run as processes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.resumable_sweeper.conftest import CONFIG, SOURCE, Application, killed, needs

GRID = ("lr=1,2", "seed=0,1,2")
LINES = [f"{lr} {seed}" for lr in (1, 2) for seed in (0, 1, 2)]
JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")


def wait_for_lines(app: Application, number: int) -> None:
    """Wait until so many jobs have come to their ends."""
    deadline = time.monotonic() + 30
    while len(app.lines()) < number:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def completion_times(app: Application) -> dict[str, float]:
    """When the completed jobs ended, by their names."""
    records = {name: app.folder / "out" / name / ".job.json" for name in app.jobs()}
    contents = {name: json.loads(path.read_text()) for name, path in records.items()}
    return {name: job["time"] for name, job in contents.items() if job["status"] == "completed"}


# -- planning ----------------------------------------------------------------------------------


def test_a_dry_run_prints_the_jobs_and_starts_none(app: Application) -> None:
    """It says what would happen to each job, before and after the sweep, and writes nothing."""
    before = sorted(app.folder.rglob("*"))
    out = app.run("lr=1,2", "seed=3", "hydra.sweeper.dry_run=true").stdout
    assert [line.split()[1:] for line in out.splitlines()[:2]] == [
        ["run", "new", "lr=1"],
        ["run", "new", "lr=2"],
    ]
    assert out.splitlines()[-1].endswith("2 to run")
    assert sorted(app.folder.rglob("*")) == before
    app.run("lr=1", "seed=3")
    files = sorted(app.folder.rglob("*"))
    out = app.run("lr=1,2", "seed=3", "hydra.sweeper.dry_run=true").stdout
    assert "1 to skip, 1 to run" in out
    out = app.run("lr=1", "seed=3", "hydra.sweeper.dry_run=true", "hydra.sweeper.force=true").stdout
    assert "run again" in out
    assert "(the only job)" in out
    assert sorted(app.folder.rglob("*")) == files


def test_a_sweep_runs_each_job_once(app: Application) -> None:
    """A second command runs nothing; a larger grid runs its new jobs only."""
    app.run(*GRID)
    assert app.lines() == LINES
    out = app.run(*GRID).stdout
    assert "6 of 6 jobs already completed" in out
    out = app.run("lr=1,2,3", "seed=0,1,2").stdout
    assert "6 of 9 jobs already completed" in out
    assert app.lines() == [*LINES, "3 0", "3 1", "3 2"]
    plan = json.loads((app.folder / "out/sweep.json").read_text())
    assert len(plan["jobs"]) == 9
    assert (app.folder / "out/multirun.yaml").exists()


def test_equal_jobs_run_once(app: Application) -> None:
    """A configuration that the grid holds twice is one job, and the command says so."""
    out = app.run("lr=1,1", "seed=0,'${sleep}'").stdout
    assert "4 jobs were requested with 1 different configurations" in out
    assert app.lines() == ["1 0"]


def test_a_sweep_needs_no_swept_key(app: Application) -> None:
    """One job is a sweep as well, and so is the application as it is."""
    app.run("lr=7")
    app.run()
    assert app.lines() == ["0.1 0", "7 0"]


def test_nothing_starts_if_one_job_is_wrong(app: Application) -> None:
    """A mistake in the last job of a grid is found before the first one starts."""
    error = app.run("lr=1,2", "seed=0", "unknown=1", code=1).stderr
    assert "unknown" in error
    error = app.run("lr=interval(0,1)", code=1).stderr
    assert "a grid needs a list of values" in error
    assert "Traceback" not in error
    assert not (app.folder / "out").exists()


@pytest.mark.parametrize(
    "swept",
    [
        "hydra.sweeper.max_batch_size=1,2",
        "hydra.launcher.x=1,2",
        "hydra.sweep.dir=out/${lr}",
    ],
)
def test_a_job_that_changes_its_sweep_is_refused(app: Application, swept: str) -> None:
    """Launcher, sweeper and directory are one for all jobs."""
    if "launcher" in swept:
        app.write("conf/hydra/launcher/own.yaml", "defaults: [basic]\n")
        swept = "hydra/launcher=basic,own"
    error = app.run("lr=1,2", swept, code=1).stderr
    assert "hydra.sweep" in error or "launcher" in error
    assert "Traceback" not in error
    assert not app.lines()


def test_parameters_of_the_yaml_are_swept(app: Application) -> None:
    """`hydra.sweeper.params` is the grid, and the command line replaces its keys."""
    app.write("conf/config.yaml", CONFIG + "  sweeper: {params: {lr: '1,2', seed: 'range(3)'}}\n")
    app.run()
    assert app.lines() == LINES
    app.run("lr=3", "seed=5,6")
    assert app.lines() == [*LINES, "3 5", "3 6"]


# -- directories -------------------------------------------------------------------------------


def test_the_user_may_name_the_directories(app: Application) -> None:
    """`hydra.sweep.subdir` may use values, numbers, the digest and `override_dirname`."""
    app.run("lr=1,2", "hydra.sweep.subdir=lr_${lr}")
    assert app.jobs() == ["lr_1", "lr_2"]
    app.run("seed=1,2", "hydra.sweep.subdir='${hydra.job.override_dirname}'", "hydra.sweep.dir=two")
    assert app.jobs("two") == ["seed=1", "seed=2"]
    subdir = "hydra.sweep.subdir='${hydra.job.num}_${digest:}'"
    app.run("seed=1,2", subdir, "hydra.sweep.dir=three")
    digests = [name.partition("_")[2] for name in app.jobs("three")]
    assert [f"{number}_{digest}" for number, digest in enumerate(digests)] == app.jobs("three")
    app.run("seed=1,2", "hydra.sweep.dir=four")
    assert app.jobs("four") == sorted(digests)


def test_two_configurations_in_one_directory_are_refused(app: Application) -> None:
    """In one command and from command to command; nothing starts."""
    error = app.run("lr=1,2", "hydra.sweep.subdir=same", code=1).stderr
    assert "two configurations share this directory (lr=1; lr=2)" in error
    assert not (app.folder / "out").exists()
    app.run("lr=1", "hydra.sweep.subdir=same")
    error = app.run("lr=2", "hydra.sweep.subdir=same", code=1).stderr
    assert "holds another configuration (lr=1)" in error
    assert app.lines() == ["1 0"]


def test_an_interpolated_directory_is_one_for_all_jobs(app: Application) -> None:
    """`${now:...}` is resolved once, however long the jobs take and wherever they run."""
    app.run("seed=1,2,3", "sleep=0.2", "hydra.sweep.dir='out/${now:%H-%M-%S.%f}'")
    (sweep,) = (app.folder / "out").iterdir()
    assert len(app.jobs(f"out/{sweep.name}")) == 3


@needs("joblib")
def test_workers_use_the_directories_of_the_command(app: Application) -> None:
    """A worker process, which composes its job again, gets the time and number of the command."""
    subdir = "hydra.sweep.subdir='${hydra.job.num}_${lr}_${digest:seed}'"
    app.run(*JOBLIB, "lr=1,2,3", subdir, "hydra.sweep.dir='out/${now:%H-%M-%S.%f}'")
    (sweep,) = (app.folder / "out").iterdir()
    names = [name.rpartition("_")[0] for name in app.jobs(f"out/{sweep.name}")]
    assert names == ["0_1", "1_2", "2_3"]


def test_the_time_and_the_job_directory_are_no_part_of_a_job(app: Application) -> None:
    """`${now:...}` and `${hydra:runtime.output_dir}` in the values make no new jobs each time."""
    values = "when: '${now:%H-%M-%S.%f}'\nckpt: '${hydra:runtime.output_dir}/ckpt'\n"
    app.write("conf/config.yaml", values + CONFIG)
    app.run("lr=1,2")
    assert "2 of 2 jobs already completed" in app.run("lr=1,2").stdout
    (first, _) = (app.folder / "out").glob("*/.hydra/config.yaml")
    assert "ckpt: ${hydra:runtime.output_dir}/ckpt" in first.read_text()


def test_ignored_keys_make_no_new_jobs(app: Application) -> None:
    """Another value of an ignored key leaves the jobs completed; the command resolves it."""
    app.write(
        "conf/config.yaml",
        CONFIG + "  sweeper: {ignore: [sleep, where]}\nwhere: ${oc.env:WHERE}\n",
    )
    app.run("lr=1,2", WHERE="/here")
    (first, _) = (app.folder / "out").glob("*/.hydra/config.yaml")
    assert "where: /here" in first.read_text()
    out = app.run("lr=1,2", "sleep=0.01", WHERE="/there").stdout
    assert "2 of 2 jobs already completed" in out
    error = app.run("lr=1", "sleep=0,0.01", WHERE="/there", code=1).stderr
    assert "sleep=0,0.01: jobs must not differ in this key alone" in error


# -- interruptions -----------------------------------------------------------------------------


@pytest.mark.slow
@needs("joblib")
def test_a_sweep_survives_being_killed_at_any_moment(app: Application) -> None:
    """SIGKILL of all processes, ten times: no completed job runs twice, and all 12 complete."""
    rng = random.Random(0)
    command = (*JOBLIB, "lr=1,2,3", "seed=0,1,2,3", "sleep=0.2")
    completed: dict[str, float] = {}
    for _ in range(10):
        process = app.start(*command)
        with suppress(subprocess.TimeoutExpired):
            # A start takes about a second, all jobs two more.
            process.communicate(timeout=rng.uniform(0.5, 1.8))
        killed(process)
        records = completion_times(app)
        # A job that ran again would have another record.
        assert completed.items() <= records.items()
        completed = records
    lines = len(app.lines())
    app.run(*command)
    assert len(app.lines()) == lines + 12 - len(completed)
    assert len(completion_times(app)) == 12
    assert set(app.lines()) == {f"{lr} {seed}" for lr in (1, 2, 3) for seed in range(4)}


@pytest.mark.parametrize(
    ("sent", "directory", "remedy"),
    [
        (signal.SIGINT, "out", "the same command continues "),
        (signal.SIGTERM, "'out/${now:%H-%M-%S.%f}'", "continue it with hydra.sweep.dir="),
    ],
)
def test_an_interrupted_sweep_says_how_to_continue(
    app: Application, sent: signal.Signals, directory: str, remedy: str
) -> None:
    """Ctrl-C and SIGTERM end it with a line; what the line says then runs what is left."""
    process = app.start(*GRID, "sleep=0.25", f"hydra.sweep.dir={directory}")
    wait_for_lines(app, 1)
    process.send_signal(sent)
    _, error = process.communicate(timeout=30)
    (line,) = (line for line in error.splitlines() if line.startswith("Interrupted; "))
    sweep = line.removeprefix(f"Interrupted; {remedy}")
    assert Path(sweep).is_relative_to(app.folder / "out")
    assert process.returncode not in (0, 1)
    assert 1 <= len(app.lines()) < 6
    app.run(*GRID, "sleep=0.25", f"hydra.sweep.dir={sweep}")
    # The signal may have hit the first job between its line and its record.
    assert sorted(set(app.lines())) == LINES
    assert len(app.lines()) <= 7


def test_force_continues_after_an_interruption(app: Application) -> None:
    """A forced sweep that was killed runs the remaining jobs only; then force starts over."""
    command = ("seed=1,2,3", "sleep=0.3")
    forced = (*command, "hydra.sweeper.force=true")
    app.run(*command)
    process = app.start(*forced)
    wait_for_lines(app, 4)
    killed(process)
    out = app.run(*forced).stdout
    assert "Launching 2 jobs" in out or "Launching 3 jobs" in out
    assert set(app.lines()) == {"0.1 1", "0.1 2", "0.1 3"}
    # The first job runs once more if it was killed between its line and its record.
    assert 6 <= len(app.lines()) <= 7
    assert "3 to run again" in app.run(*forced, "hydra.sweeper.dry_run=true").stdout


def test_a_failing_job_stops_no_other_and_is_retried(app: Application) -> None:
    """The exit code is 1; the next command runs the failed job again and no other."""
    run = app.run(*GRID, "fail=1", code=1)
    assert "2 of 6 jobs not completed" in run.stderr
    assert "no luck" in run.stdout + run.stderr
    assert app.lines() == ["1 0", "1 2", "2 0", "2 2"]
    app.write("app.py", (app.folder / "app.py").read_text().replace("cfg.fail", "None"))
    assert "4 of 6 jobs already completed" in app.run(*GRID, "fail=1").stdout
    assert app.lines() == LINES


def test_deleted_and_damaged_files_are_written_again(app: Application) -> None:
    """Without its plan a sweep continues; a job without a readable record runs again."""
    app.run(*GRID)
    (app.folder / "out/sweep.json").unlink()
    (app.folder / "out/multirun.yaml").unlink()
    assert "6 of 6 jobs already completed" in app.run(*GRID).stdout
    assert len(json.loads((app.folder / "out/sweep.json").read_text())["jobs"]) == 6
    record = app.folder / "out" / app.jobs()[0] / ".job.json"
    record.write_text("{")
    assert "5 of 6 jobs already completed" in app.run(*GRID).stdout
    assert len(app.lines()) == 7
    assert json.loads(record.read_text())["status"] == "completed"


# -- several processes -------------------------------------------------------------------------


@needs("joblib")
def test_two_processes_share_a_sweep(app: Application) -> None:
    """Started together, they run each job once, and both end when all are completed."""
    command = (*GRID, "sleep=0.3")
    processes = [app.start(*command), app.start(*JOBLIB, *command)]
    try:
        results = [process.communicate(timeout=60) for process in processes]
    finally:
        for process in processes:
            killed(process)
    assert [process.returncode for process in processes] == [0, 0], results
    assert app.lines() == LINES


def test_a_process_takes_over_the_jobs_of_one_that_died(app: Application) -> None:
    """A job that it left to the other process, which was killed then, is run in the end."""
    command = ("seed=1,2,3", "sleep=1")
    first = app.start(*command)
    try:
        # The first process is at seed=1 when the second one passes over it.
        wait_for_lines(app, 0)
        while not app.jobs():
            time.sleep(0.01)
        second = app.start(*command)
        while len(app.jobs()) < 2:
            time.sleep(0.01)
    finally:
        killed(first)
    try:
        out, error = second.communicate(timeout=30)
    finally:
        killed(second)
    assert second.returncode == 0, out + error
    assert sorted(set(app.lines())) == ["0.1 1", "0.1 2", "0.1 3"]


def test_a_job_that_another_process_runs_is_waited_for(app: Application) -> None:
    """A command whose only job runs elsewhere ends when the job is completed."""
    first = app.start("seed=1", "sleep=8")
    try:
        while not app.jobs():
            time.sleep(0.01)
        assert (
            "Waiting for another process, which runs 1 job" in app.run("seed=1", "sleep=8").stdout
        )
        assert app.lines() == ["0.1 1"]
    finally:
        first.communicate(timeout=30)


# -- launchers ---------------------------------------------------------------------------------


@needs("joblib")
def test_joblib_runs_the_jobs(app: Application) -> None:
    """Worker processes run each job once; a failing one does not stop the others."""
    error = app.run(*JOBLIB, "seed=0,1,2", "fail=1", code=1).stderr
    assert "1 of 3 jobs not completed" in error
    assert app.lines() == ["0.1 0", "0.1 2"]


@needs("submitit")
def test_submitit_runs_the_jobs(app: Application) -> None:
    """Its options contain the sweep's directory, which is relative in the YAML."""
    app.run("hydra/launcher=submitit_local", "lr=1,2", "hydra.sweep.subdir=${hydra.job.num}_${lr}")
    assert app.lines() == ["1 0", "2 0"]
    assert app.jobs() == ["0_1", "1_2"]


def test_at_most_max_batch_size_jobs_are_launched_at_a_time(app: Application) -> None:
    """The launcher gets the jobs in portions, numbered through."""
    out = app.run(*GRID, "hydra.sweeper.max_batch_size=4").stdout
    assert [line.split("]")[-1].strip() for line in out.splitlines() if "Launching" in line] == [
        "Launching 4 jobs locally",
        "Launching 2 jobs locally",
    ]
    assert app.lines() == LINES
    numbers = [
        line.split()[1]
        for path in (app.folder / "out").glob("*/.hydra/hydra.yaml")
        for line in path.read_text().splitlines()
        if line.startswith("    num:")
    ]
    assert sorted(numbers) == ["0", "1", "2", "3", "4", "5"]


# -- hooks -------------------------------------------------------------------------------------

HOOKS = """
from pathlib import Path

def check(cfg):
    if cfg.lr > cfg.hydra.job.get("limit", 5):
        raise ValueError(f"lr={cfg.lr}: is larger than 5; choose a smaller one")

def state(directory, name):
    assert directory.name == name
    return "completed: by hand" if (directory / "mine").exists() else "new"

def report(directory):
    return f"reported {len(list(directory.glob('*/.hydra')))} jobs in {directory}"
"""


def test_check_sees_every_job_before_the_first_starts(app: Application) -> None:
    """Its ValueError is the message on stderr, with exit code 1, and nothing is written."""
    app.write("hooks.py", HOOKS)
    error = app.run("lr=1,2,9", "hydra.sweeper.check=hooks.check", code=1).stderr
    # On a busy machine a line of planning comes first.
    assert "lr=9: is larger than 5; choose a smaller one\n" in error
    assert "Traceback" not in error
    assert not (app.folder / "out").exists()
    app.run("lr=1,2", "hydra.sweeper.check=hooks.check")
    assert app.lines() == ["1 0", "2 0"]


def test_state_says_how_a_job_stands(app: Application) -> None:
    """The application's own state replaces the records; a remark is counted."""
    app.write("hooks.py", HOOKS)
    source = (app.folder / "app.py").read_text()
    source = source.replace("    line =", "    Path(output(), 'mine').touch()\n    line =")
    source = source.replace(
        "import hydra\n",
        "import hydra\nfrom hydra.core.hydra_config import HydraConfig\n"
        "output = lambda: HydraConfig.get().runtime.output_dir\n",
    )
    app.write("app.py", source)
    app.run("lr=1,2", "hydra.sweeper.state=hooks.state")
    assert not app.jobs()
    out = app.run("lr=1,2,3", "hydra.sweeper.state=hooks.state").stdout
    assert "2 of 3 jobs already completed, 2 by hand" in out
    assert app.lines() == ["1 0", "2 0", "3 0"]


def test_report_is_called_at_the_end_whatever_failed(app: Application) -> None:
    """It gets the sweep's directory, and what it returns is printed."""
    app.write("hooks.py", HOOKS)
    out = app.run("seed=1,2", "fail=2", "hydra.sweeper.report=hooks.report", code=1).stdout
    assert f"reported 2 jobs in {app.folder / 'out'}" in out


def test_a_hook_that_does_not_exist_is_told_at_once(app: Application) -> None:
    """The message names the option."""
    error = app.run("lr=1", "hydra.sweeper.report=hooks.nothing", code=1).stderr
    assert "hydra.sweeper.report=hooks.nothing" in error
    assert not app.lines()


# -- applications ------------------------------------------------------------------------------


def test_the_sweeper_is_chosen_on_the_command_line(app: Application) -> None:
    """An application whose YAML does not name it needs no change."""
    app.write("conf/config.yaml", "lr: 0.1\nseed: 0\nfail: null\nsleep: 0\n")
    app.run("hydra/sweeper=resumable", "hydra.sweep.dir=out", "lr=1,2")
    app.run("hydra/sweeper=resumable", "hydra.sweep.dir=out", "lr=1,2,3")
    assert app.lines() == ["1 0", "2 0", "3 0"]


STRUCTURED = """
import os
from dataclasses import dataclass
from enum import Enum
import hydra
from hydra.core.config_store import ConfigStore

class Color(Enum):
    red = 1
    blue = 2

@dataclass
class Config:
    lr: float = 0.1
    color: Color = Color.red
    size: int = 3

ConfigStore.instance().store(name="config", node=Config)

@hydra.main(version_base="1.3", config_path=None, config_name="config")
def main(cfg):
    with open(os.environ["DONE"], "a") as file:
        file.write(f"{cfg.lr} {cfg.color.name}\\n")

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", pytest.param("joblib", marks=needs("joblib"))])
def test_an_application_may_have_structured_configs_only(app: Application, launcher: str) -> None:
    """Typed values and enumerations are swept; there is no YAML at all."""
    app.write("app.py", STRUCTURED)
    command = ("hydra/sweeper=resumable", "hydra.sweep.dir=out", f"hydra/launcher={launcher}")
    app.run(*command, "lr=1,2", "color=red,blue")
    assert app.lines() == ["1.0 blue", "1.0 red", "2.0 blue", "2.0 red"]
    # A float is the same value as the integer that it is written as.
    out = app.run(*command, "lr=1.0,2", "color=red", "hydra.sweeper.dry_run=true").stdout
    assert "2 to skip" in out


def test_configurations_may_come_from_anywhere(app: Application) -> None:
    """A package, `--config-dir` and `hydra.searchpath` are searched in the jobs as well."""
    app.write("package/__init__.py", "")
    app.write("package/conf/__init__.py", "")
    app.write("package/conf/config.yaml", CONFIG)
    app.write("more/model/one.yaml", "# @package _global_\nlr: 11\n")
    app.write("most/model/two.yaml", "# @package _global_\nlr: 12\n")
    source = (app.folder / "app.py").read_text()
    app.write("app.py", source.replace('"conf"', '"pkg://package.conf"'))
    path = "hydra.searchpath=[file://most]"
    app.run("--config-dir", "more", path, "+model=one,two", "seed=1")
    app.run("--config-dir", "more", path, "+model=one,two", "seed=1")
    assert app.lines() == ["11 1", "12 1"]


def test_every_kind_of_override_reaches_the_jobs(app: Application) -> None:
    """Groups, packages, additions and deletions, swept or not, with odd values."""
    app.write("conf/model/small.yaml", "name: small\nwidth: 1\n")
    app.write("conf/model/large.yaml", "name: large\nwidth: 9\n")
    command = (
        *("+model@net=small,large", "+model=small", "~extra", "++new.key=2"),
        *("+text='a b','c=d',\"e,f\",'größe'", "+empty=[]", "~model.width"),
    )
    app.run(*command)
    assert len(app.lines()) == 8
    assert "8 of 8 jobs already completed" in app.run(*command).stdout
    configs = [path.read_text() for path in (app.folder / "out").glob("*/.hydra/config.yaml")]
    for text in ("name: large", "text: a b", "text: c=d", "text: e,f", "key: 2", "größe"):
        assert any(text in config for config in configs), text
    assert not any("width: 1\nempty" in config for config in configs)


CALLBACK = """
from hydra.experimental.callback import Callback

class Log(Callback):
    def __init__(self, file):
        self.file = file

    def _log(self, text):
        with open(self.file, "a") as file:
            file.write(text + "\\n")

    def on_multirun_start(self, config, **kwargs):
        self._log("multirun start")

    def on_multirun_end(self, config, **kwargs):
        self._log("multirun end")

    def on_job_start(self, config, **kwargs):
        self._log(f"start {config.lr} {config.hydra.job.num}")

    def on_job_end(self, config, job_return, **kwargs):
        self._log(f"end {config.lr} {job_return.status.name} {job_return.return_value}")
"""


def test_callbacks_are_called_for_the_jobs_that_run(app: Application) -> None:
    """Hydra's callbacks see each job, and the sweep."""
    app.write("callbacks.py", CALLBACK)
    log = app.folder / "log.txt"
    callback = f"+hydra.callbacks.log={{_target_: callbacks.Log, file: {log}}}"
    app.run("lr=1", callback)
    app.run("lr=1,2", callback, HYDRA_INSTANTIATE_ALLOWLIST_OVERRIDE="callbacks.*")
    assert log.read_text().splitlines() == [
        *("multirun start", "start 1 0", "end 1 COMPLETED None", "multirun end"),
        *("multirun start", "start 2 0", "end 2 COMPLETED None", "multirun end"),
    ]


def test_a_job_may_change_the_working_directory(app: Application) -> None:
    """With `hydra.job.chdir` and a relative sweep directory, everything stays in its place."""
    app.run("lr=1,2", "hydra.job.chdir=true")
    assert "2 of 2 jobs already completed" in app.run("lr=1,2", "hydra.job.chdir=true").stdout
    assert len(app.jobs()) == 2
    assert not list(app.folder.glob("out/*/out"))


def test_nothing_of_hydras_own_output_is_needed(app: Application) -> None:
    """`hydra.output_subdir=null` and silent logging leave the records, which suffice."""
    silent = ("hydra.output_subdir=null", "hydra/job_logging=disabled", "hydra/hydra_logging=none")
    app.run("lr=1,2", *silent)
    app.run("lr=1,2", *silent, "hydra.sweeper.force=true")
    app.run("lr=1,2", *silent)
    assert app.lines() == ["1 0", "1 0", "2 0", "2 0"]


def test_the_plugin_imports_no_application() -> None:
    """It needs Hydra, OmegaConf and filelock alone, and Hydra's start loads its options only."""
    source = (
        "import sys, hydra_plugins.resumable_sweeper.config\n"
        "assert 'filelock' not in sys.modules\n"
        "import hydra_plugins.resumable_sweeper.sweeper, hydra_plugins.resumable_sweeper.search\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    out = subprocess.run(
        [sys.executable, "-c", source], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    assert {"hydra", "omegaconf", "filelock"} <= set(out)
    assert not {"digitlab", "torch", "lightning", "numpy", "optuna", "ray", "joblib"} & set(out)
