"""The sweeper: plans all jobs, launches those that are not completed, waits, reports."""

import copy
import dataclasses
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.errors import CompactHydraException, HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf, read_write

# A launcher's worker process imports this module alone, and needs the resolver as well.
import hydra_plugins.resumable_sweeper.config  # noqa: F401
from hydra_plugins.resumable_sweeper import jobs
from hydra_plugins.resumable_sweeper.jobs import Job, Planned, SweepTask

# What a dry run prints for each state; a job in a state of the application's own runs again.
ACTIONS = {
    "new": "run",
    "completed": "skip",
    "pruned": "skip",
    "interrupted": "resume",
    "failed": "retry",
    "running": "wait for",
    "foreign": "refuse",
}
# States in which another process leaves a job that it did not finish.
UNFINISHED = ("new", "interrupted", "damaged")
POLL_SECONDS = 0.5
PROGRESS_SECONDS = 1.0


class JobConfigLoader(ConfigLoader):
    """Gives the launcher the configurations that were composed and checked, each once.

    A launcher's worker process gets it without them, and composes its job again.
    """

    def __init__(self, loader: ConfigLoader, directory: Path, ignored: Sequence[str]) -> None:
        self.loader, self.directory, self.ignored = loader, directory, ignored
        self.composed: dict[tuple[str, ...], DictConfig] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the configurations, and the class by its name."""
        return jobs.current_class(type(self)), (self.loader, self.directory, self.ignored)

    def load_sweep_config(
        self, master_config: DictConfig, sweep_overrides: list[str]
    ) -> DictConfig:
        """The configuration of a job."""
        cfg = self.composed.pop(tuple(sweep_overrides), None)
        if cfg is None:
            cfg = self.loader.load_sweep_config(master_config, sweep_overrides)
            # The command may have numbered the jobs, or have had other environment variables.
            name = jobs.planned_name(self.directory, sweep_overrides)
            jobs.place(cfg, self.directory, name or jobs.digest(cfg, self.ignored), self.ignored)
        return cfg

    def load_configuration(self, *args: Any, **options: Any) -> DictConfig:
        """As the application's own loader."""
        return self.loader.load_configuration(*args, **options)

    def get_search_path(self) -> ConfigSearchPath:
        """As the application's own loader."""
        return self.loader.get_search_path()

    def get_sources(self) -> list[Any]:
        """As the application's own loader."""
        return self.loader.get_sources()

    def list_groups(self, parent_name: str) -> list[str]:
        """As the application's own loader."""
        return self.loader.list_groups(parent_name)

    def get_group_options(self, *args: Any, **options: Any) -> list[str]:
        """As the application's own loader."""
        return self.loader.get_group_options(*args, **options)

    def compute_defaults_list(self, *args: Any, **options: Any) -> Any:
        """As the application's own loader."""
        return self.loader.compute_defaults_list(*args, **options)


class ResumableSweeper(Sweeper):
    """Runs every combination of the swept values that is not completed yet."""

    def __init__(
        self,
        params: Mapping[str, str] | None,
        max_batch_size: int | None,
        dry_run: bool,
        force: bool,
        ignore: Sequence[str],
        check: str | None,
        state: str | None,
        report: str | None,
    ) -> None:
        self.params, self.max_batch_size = params or {}, max_batch_size
        self.dry_run, self.force, self.ignore = dry_run, force, list(ignore)
        self.check = function(check, "check")
        self.state = function(state, "state") or jobs.recorded_state
        self.report = function(report, "report")
        self.keeps_records = state is None
        self.hydra_context: HydraContext | None = None
        self.config: DictConfig | None = None
        self.launcher: Launcher | None = None
        self.launcher_failed = False
        self.launched = 0
        self.failed: set[str] = set()

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take what Hydra gives a sweeper."""
        settings: Any = OmegaConf.to_container(config.hydra.sweep)
        self.names_new_directory = jobs.TRANSIENT.search(settings["dir"]) is not None
        # Resolved once: `${now:...}` would name another directory for a job that starts later.
        self.directory = Path(config.hydra.sweep.dir).absolute()
        config = copy.deepcopy(config)
        with read_write(config.hydra):
            config.hydra.sweep.dir = str(self.directory)
        self.hydra_context, self.config = hydra_context, config
        self.task = SweepTask(task_function, keeps_record=self.keeps_records)
        self.loader = JobConfigLoader(hydra_context.config_loader, self.directory, self.ignore)

    def sweep(self, arguments: list[str]) -> Any:
        """Run the jobs that are not completed.

        Args:
            arguments: Overrides, with several values for the keys that are swept.

        Returns:
            What the jobs returned that ran, in their order.

        Raises:
            CompactHydraException: The command is wrong; nothing was started or written.
            SystemExit: With code 1 if a job is not completed at the end.
        """
        try:
            planned = self.plan(arguments)
            states = {job.name: self.state_of(job) for job in planned}
            if self.dry_run:
                print(self.describe(planned, states))
                return []
            self.refuse_conflicts(planned, states)
        except ValueError as error:
            raise CompactHydraException(str(error)) from error
        recorded = jobs.extend_plan(self.directory, planned, force=self.force)
        jobs.write_text(self.directory / "multirun.yaml", OmegaConf.to_yaml(self.config))
        print(f"{_count(len(planned), 'job')} in {self.directory}")
        self.print_completed(states)
        with self.resumable():
            returns = self.run(planned, recorded)
        if not self.launcher_failed:
            jobs.close_plan(self.directory, recorded)
        if self.report is not None and (text := self.report(self.directory)):
            print(text)
        left = [job for job in planned if not self.is_done(job, recorded)]
        if left:
            print(f"{len(left)} of {_count(len(planned), 'job')} not completed", file=sys.stderr)
            sys.exit(1)
        return returns

    @contextmanager
    def resumable(self) -> Iterator[None]:
        """Turn signals into KeyboardInterrupt, and say how to continue after it."""
        try:
            with signals_as_interrupts():
                yield
        except (KeyboardInterrupt, SystemExit):
            # Ray turns SIGTERM into SystemExit.
            remedy = f"the same command continues {self.directory}"
            if self.names_new_directory:
                remedy = f"continue it with hydra.sweep.dir={self.directory}"
            print(f"Interrupted; {remedy}", file=sys.stderr)
            raise KeyboardInterrupt(str(self.directory)) from None

    def print_completed(self, states: Mapping[str, str]) -> None:
        """Say how many jobs are completed already, and how many of them with a remark."""
        completed = [state for state in states.values() if is_completed(state)]
        if not completed or self.force:
            return
        remarks = Counter(state.partition(": ")[2] for state in completed)
        del remarks[""]
        suffix = "".join(f", {number} {remark}" for remark, number in remarks.items())
        print(f"{len(completed)} of {_count(len(states), 'job')} already completed{suffix}")

    # -- planning ------------------------------------------------------------------------------

    def plan(self, arguments: list[str]) -> list[Job]:
        """Compose, check and name all jobs of a command, each once.

        Raises ValueError for the first job that cannot be run.
        """
        assert self.hydra_context is not None
        assert self.config is not None
        loader = self.hydra_context.config_loader
        parser = OverridesParser.create(config_loader=loader)
        lines = [f"{key}={value}" for key, value in self.params.items()]
        grid = jobs.expand(parser.parse_overrides([*lines, *arguments]))
        composer = jobs.Composer(loader, self.config)
        requested = []
        for number, job_lines in enumerate(with_progress(grid)):
            requested.append(self.make_job(composer, job_lines, number))
        planned = jobs.unique(requested, self.ignore)
        if len(planned) < len(requested):
            print(
                f"{len(requested)} jobs were requested with {len(planned)} different"
                " configurations; each configuration runs once"
            )
        return planned

    def make_job(self, composer: jobs.Composer, lines: list[str], number: int) -> Job:
        """Compose, check and name a job. Raises ValueError if it cannot be run."""
        cfg = composer.compose(lines)
        self.check_settings_of_sweep(cfg, lines)
        digest = jobs.digest(cfg, self.ignore)
        name = jobs.directory_name(cfg, digest, number)
        jobs.place(cfg, self.directory, name, self.ignore)
        if self.check is not None:
            with jobs.hydra_settings(cfg):
                self.check(cfg)
        return Job(name, lines, cfg, digest)

    def check_settings_of_sweep(self, cfg: DictConfig, lines: list[str]) -> None:
        """Raise ValueError for a job that changes what holds for the whole sweep."""
        assert self.config is not None
        changed = [] if Path(cfg.hydra.sweep.dir).absolute() == self.directory else ["sweep.dir"]
        with read_write(cfg.hydra):
            # The launcher's options may contain it, as submitit's do.
            cfg.hydra.sweep.dir = str(self.directory)
        for key in ("launcher", "sweeper"):
            if cfg.hydra[key] != self.config.hydra[key]:
                changed.append(key)
        if changed:
            raise ValueError(
                f"{' '.join(lines)}: a job cannot change hydra.{changed[0]}, which holds for the"
                " whole sweep; give it one value for all jobs"
            )

    def refuse_conflicts(self, planned: Sequence[Job], states: Mapping[str, str]) -> None:
        """Raise ValueError for a directory that holds something else than the job."""
        recorded = jobs.read_plan(self.directory)
        for job in planned:
            before = recorded.get(job.name)
            directory = self.directory / job.name
            if before is not None and before.digest not in ("", job.digest):
                raise ValueError(
                    f"{directory}: holds another configuration ({' '.join(before.lines)});"
                    " choose another hydra.sweep.dir"
                )
            if states[job.name].partition(":")[0] == "foreign":
                raise ValueError(
                    f"{directory}: holds files that are not of this job;"
                    " choose another hydra.sweep.dir"
                )

    def describe(self, planned: Sequence[Job], states: Mapping[str, str]) -> str:
        """What a dry run prints: a line a job."""
        recorded = jobs.read_plan(self.directory)
        rows, actions = [], Counter[str]()
        lines = jobs.short_lines({job.name: Planned(job.name, job.lines) for job in planned})
        for job in planned:
            state, _, remark = states[job.name].partition(": ")
            action = ACTIONS.get(state, "run again")
            if self.force and is_completed(state) and not self.is_done(job, recorded):
                action = "run again"
            actions[action] += 1
            suffix = f"  ({remark})" if remark else ""
            rows.append(f"{job.name}  {action:9}  {state:11}  {lines[job.name]}{suffix}")
        summary = ", ".join(f"{number} to {action}" for action, number in actions.items())
        return "\n".join([*rows, f"{_count(len(rows), 'job')} in {self.directory}: {summary}"])

    # -- running -------------------------------------------------------------------------------

    def run(self, planned: Sequence[Job], recorded: Mapping[str, Planned]) -> list[Any]:
        """Launch what is not completed, until no other process leaves anything unfinished."""
        returns: list[Any] = []
        launched = Counter[str]()
        left = [job for job in planned if not self.is_done(job, recorded)]
        while left:
            waiting = [job for job in left if self.state_of(job) != "running"]
            for batch in self.batches(waiting):
                returns += self.launch(batch)
                if jobs.interrupted.is_set():
                    raise KeyboardInterrupt
            launched.update(job.name for job in waiting)
            self.wait_for_others(planned)
            left = [job for job in left if self.is_left(job, recorded, launched[job.name])]
        return returns

    def is_left(self, job: Job, recorded: Mapping[str, Planned], launched: int) -> bool:
        """Whether another process did not finish a job, or finished it before it was forced.

        A job that this process launched already does nothing if another process is running it. It
        is launched once more at most: its state might never change.
        """
        if self.launcher_failed or self.is_done(job, recorded) or job.name in self.failed:
            return False
        state = self.state_of(job)
        if state in UNFINISHED:
            return launched < 2
        return is_completed(state) and launched == 0

    def batches(self, waiting: Sequence[Job]) -> Iterator[Sequence[Job]]:
        """The jobs in the portions that the launcher gets."""
        size = self.max_batch_size or max(1, len(waiting))
        for start in range(0, len(waiting), size):
            yield waiting[start : start + size]

    def launch(self, batch: Sequence[Job]) -> list[Any]:
        """Hand jobs to the launcher. A failing job and a failing launcher end no sweep."""
        if self.launcher is None:
            self.launcher = self.make_launcher()
        self.loader.composed |= {tuple(job.lines): job.cfg for job in batch}
        first = self.launched
        self.launched += len(batch)
        try:
            results = self.launcher.launch([job.lines for job in batch], initial_job_idx=first)
        except HydraException:
            raise
        except Exception as error:
            # A worker was killed, or a queue refused the job.
            self.launcher_failed = True
            message = f"the launcher stopped: {type(error).__name__}: {error}"
            print(f"Error: {message}", file=sys.stderr)
            return []
        returns = []
        for job, result in zip(batch, results, strict=False):
            if result.status == JobStatus.COMPLETED:
                returns.append(result.return_value)
            else:
                self.failed.add(job.name)
        return returns

    def make_launcher(self) -> Launcher:
        """The launcher, with the configurations that were composed already."""
        assert self.hydra_context is not None
        assert self.config is not None
        # Jobs that are composed later have the options of the command.
        config = copy.deepcopy(self.config)
        if config.hydra.launcher._target_.endswith(".RayLauncher"):
            # The plugin asks for an object store of its own, which a running cluster refuses.
            key = "hydra.launcher.ray.init.object_store_memory"
            with read_write(config.hydra):
                OmegaConf.update(config, key, None, force_add=True)
            # Ray hides lines of a job that equal another's, and answers SIGTERM with a stack trace.
            os.environ.setdefault("RAY_DEDUP_LOGS", "0")
            os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
        context = dataclasses.replace(self.hydra_context, config_loader=self.loader)
        return Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=self.task, config=config
        )

    def wait_for_others(self, planned: Sequence[Job]) -> None:
        """Wait for jobs that other processes run."""
        running = [job for job in planned if self.state_of(job) == "running"]
        if running:
            print(f"Waiting for another process, which runs {_count(len(running), 'job')}")
        for job in running:
            while self.state_of(job) == "running":
                time.sleep(POLL_SECONDS)

    def state_of(self, job: Job) -> str:
        """The state of a job now, perhaps with a remark after a colon."""
        return self.state(self.directory / job.name, job.name)

    def is_done(self, job: Job, recorded: Mapping[str, Planned]) -> bool:
        """Whether a job is completed; with `force`, since the command and without a remark."""
        state = self.state_of(job)
        if job.name in self.failed or not is_completed(state):
            return False
        if not self.force:
            return True
        since = recorded[job.name].since if job.name in recorded else 0.0
        return state in jobs.FINISHED and jobs.started_since(self.directory / job.name, since)


def is_completed(state: str) -> bool:
    """Whether a state is `completed` or `pruned`, with or without a remark behind a colon."""
    return state.partition(":")[0] in jobs.FINISHED


def function(name: str | None, option: str) -> Callable[..., Any] | None:
    """The function with a dotted name. Raises CompactHydraException where there is none."""
    if name is None:
        return None
    try:
        return get_method(name)
    except Exception as error:
        raise CompactHydraException(f"hydra.sweeper.{option}={name}: {error}") from error


def with_progress(grid: list[list[str]]) -> Iterator[list[str]]:
    """The jobs of a grid; says how many are planned where that takes longer than a second."""
    last = time.monotonic()
    for number, lines in enumerate(grid):
        if time.monotonic() - last > PROGRESS_SECONDS:
            last = time.monotonic()
            print(f"Planning: {number} of {len(grid)} jobs", file=sys.stderr, flush=True)
        yield lines


@contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """Let SIGTERM end the sweep as Ctrl-C does, unless the application handles it."""
    jobs.interrupted.clear()
    before = {}
    # Only the main thread may change handlers.
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    jobs.interrupted.set()
    raise KeyboardInterrupt


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
