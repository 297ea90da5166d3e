"""A search: the sweeper that asks Optuna for its jobs, some at a time.

A trial is a job of the sweep, in a directory named by its configuration, and is planned, checked,
launched and recorded as a job of a grid is. The study holds what was asked for and what came of it.
Imports Optuna only when a search starts.
"""

import json
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException, HydraException
from omegaconf import OmegaConf

from hydra_plugins.resumable_sweeper import jobs
from hydra_plugins.resumable_sweeper.jobs import Job
from hydra_plugins.resumable_sweeper.sweeper import (
    ACTIONS,
    POLL_SECONDS,
    UNFINISHED,
    ResumableSweeper,
    function,
    is_completed,
)

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.trial import FrozenTrial

    from hydra_plugins.resumable_sweeper._space import Space

SEARCH_LOCK = ".search.lock"
# Proposals in a row that are no new jobs before the search draws at random from what is left.
ATTEMPTS = 20
# A finite space up to this size is searched to its end.
LARGEST_LISTED = 100_000


class ResumableOptunaSweeper(ResumableSweeper):
    """Runs trials that Optuna proposes until there are `n_trials` in all."""

    def __init__(
        self,
        n_trials: int | None,
        n_jobs: int,
        direction: str,
        seed: int,
        sampler: Mapping[str, Any],
        pruner: Mapping[str, Any] | None,
        objective: str | None,
        confirm: Sequence[str],
        **common: Any,
    ) -> None:
        super().__init__(max_batch_size=n_jobs, force=False, **common)
        self.n_trials, self.n_jobs, self.direction, self.seed = n_trials, n_jobs, direction, seed
        self.confirm = list(confirm)
        self.sampler, self.pruner = to_plain(sampler), to_plain(pruner)
        if not self.keeps_records and objective is None:
            raise CompactHydraException(
                "hydra.sweeper.objective=null: with hydra.sweeper.state the application keeps its"
                " own records; name the function of a job's directory that reads its value"
            )
        self.objective = function(objective, "objective") or jobs.recorded_value
        # The jobs of trials, by their names.
        self.jobs: dict[str, Job] = {}
        self.launches = Counter[str]()
        self.retries: list[str] = []

    def sweep(self, arguments: list[str]) -> float | None:
        """Run trials until there are `n_trials` in all.

        Args:
            arguments: Overrides, with intervals, ranges or several values for the keys to search.

        Returns:
            The best value; None if there is none, or in a dry run.

        Raises:
            CompactHydraException: The command is wrong; nothing was started or written.
            SystemExit: With code 1 if a trial failed.
        """
        try:
            self.plan(arguments)
            self.open_study()
            if self.dry_run:
                print(self.describe_search())
                return None
        except ValueError as error:
            raise CompactHydraException(str(error)) from error
        jobs.write_text(self.directory / "multirun.yaml", OmegaConf.to_yaml(self.config))
        print(f"Search for {self.n_trials} trials in {self.directory}")
        with self.resumable():
            self.search()
            again = self.run_best_again()
        if self.report is not None and (text := self.report(self.directory)):
            print(text)
        best = self.study.best()
        if best is not None:
            print(f"Best: {self.describe_trial(best)}")
            for job in again:
                lines = self.job_of(best).lines
                changed = " ".join(line for line in job.lines if line not in lines)
                print(f"Again with {changed or 'the same values'}: {self.describe_value(job)}")
        left = self.unfinished() + sum(not is_completed(self.state_of(job)) for job in again)
        if left:
            total = self.count() + len(again)
            print(f"{left} of {total} trials not completed", file=sys.stderr)
            sys.exit(1)
        return best.value if best is not None else None

    # -- the space -----------------------------------------------------------------------------

    def plan(self, arguments: list[str]) -> list[Job]:
        """Read the space, compose and check its corners; returns their jobs, which do not run.

        Raises ValueError for a mistake.
        """
        for key, value in (("n_trials", self.n_trials), ("n_jobs", self.n_jobs)):
            if value is None or value < 1:
                what = "trials there shall be in all" if key == "n_trials" else "run at a time"
                raise ValueError(
                    f"hydra.sweeper.{key}={'null' if value is None else value}: says how many"
                    f" {what}; give a number, as hydra.sweeper.{key}={40 if value is None else 1}"
                )
        if self.direction not in ("minimize", "maximize"):
            raise ValueError(
                f"hydra.sweeper.direction={self.direction}: must be minimize or maximize"
            )
        assert self.hydra_context is not None
        assert self.config is not None
        try:
            import optuna  # noqa: F401

            from hydra_plugins.resumable_sweeper import _space
        except ModuleNotFoundError as error:
            raise ValueError(
                f"hydra/sweeper=resumable_optuna needs {error.name}, which is not installed;"
                " install Optuna: pip install 'optuna>=5,<6'"
            ) from error
        loader = self.hydra_context.config_loader
        lines = [f"{key}={value}" for key, value in self.params.items()]
        parser = OverridesParser.create(config_loader=loader)
        self.space: Space = _space.make_space(parser.parse_overrides([*lines, *arguments]))
        self.composer = jobs.Composer(loader, self.config)
        corners = [self.space.lines(params) for params in self.space.corners()]
        planned = [self.make_job(self.composer, lines, 0) for lines in corners]
        return [*planned, *self.confirmations(corners[0])]

    def open_study(self) -> None:
        """Open the study of the fixed configuration, and tell it what is known already.

        Raises ValueError if sampler or pruner cannot be made.
        """
        from hydra_plugins.resumable_sweeper import _study

        try:
            base = self.composer.compose(list(self.space.fixed.values()))
        except HydraException:
            # A group without a default is searched.
            base = self.composer.compose(self.space.lines(next(self.space.corners())))
        keys = [key.lstrip("+") for key in self.space.dimensions]
        self.defaults: dict[str, Any] = {}
        for key in keys:
            choice = base.hydra.runtime.choices.get(key)
            self.defaults[key] = OmegaConf.select(base, key) if choice is None else choice
        identity = [jobs.digest(base, [*self.ignore, *keys]), *sorted(keys)]
        name = f"{self.direction} {' '.join(identity)}"
        option, options = "sampler", self.sampler
        try:
            _study.make_sampler(self.sampler, 0)
            option, options = "pruner", self.pruner
            _study.make_pruner(self.pruner)
        except Exception as error:
            message = str(error).partition("\n")[0]
            raise ValueError(f"hydra.sweeper.{option}={json.dumps(options)}: {message}") from error
        if not self.dry_run:
            self.directory.mkdir(parents=True, exist_ok=True)
        self.study = _study.Study(
            self.directory,
            name,
            self.direction,
            self.sampler,
            self.pruner,
            write=not self.dry_run,
        )
        with self.lock():
            self.add_known()
            self.settle()
        for job, trial in self.study.latest().items():
            if trial.state.name == "FAIL" and not is_completed(self.state_of(self.job_of(trial))):
                self.retries.append(job)

    def lock(self) -> AbstractContextManager[Any]:
        """The lock of the study, which a dry run leaves alone."""
        return nullcontext() if self.dry_run else jobs.hold_lock(self.directory / SEARCH_LOCK)

    def add_known(self) -> None:
        """Tell the study the finished jobs of the directory that lie in the space."""
        known = self.study.latest()
        for name, planned in jobs.read_plan(self.directory).items():
            if name in known:
                continue
            params = self.space.read(planned.lines, self.defaults)
            if params is None:
                continue
            job = self.make_job(self.composer, self.space.lines(params), len(known))
            if job.name == name and job.digest == planned.digest:
                self.add_if_finished(job, params)

    def add_if_finished(self, job: Job, params: Mapping[str, Any]) -> bool:
        """Tell the study a job that finished before the search asked for it."""
        state = self.state_of(job).partition(":")[0]
        if not is_completed(state):
            return False
        value = self.value_of(job)
        if state == "completed" and value is None:
            return False
        self.study.add_known(self.space, params, job.name, state, value)
        return True

    # -- trials --------------------------------------------------------------------------------

    def search(self) -> None:
        """Ask for trials and run them, until there are enough or the space is exhausted."""
        while True:
            with self.lock():
                self.settle()
                batch = self.next_batch()
            if batch:
                jobs.extend_plan(self.directory, batch, force=False)
                self.launches.update(job.name for job in batch)
                self.launch(batch)
                if jobs.interrupted.is_set():
                    raise KeyboardInterrupt
                if self.launcher_failed:
                    self.settle()
                    return
            elif self.study.running():
                # Another process runs them.
                time.sleep(POLL_SECONDS)
            else:
                return

    def run_best_again(self) -> list[Job]:
        """Run the best trial once for each override of `confirm`, as jobs that are no trials."""
        best = self.study.best()
        if best is None or self.launcher_failed:
            return []
        again = jobs.unique(self.confirmations(self.job_of(best).lines), self.ignore)
        if again:
            self.run(again, jobs.extend_plan(self.directory, again, force=False))
        return again

    def confirmations(self, lines: Sequence[str]) -> list[Job]:
        """The jobs of `confirm` for a trial with these overrides."""
        parser, made = OverridesParser.create(), []
        for override in self.confirm:
            for job_lines in jobs.expand(parser.parse_overrides([*lines, override])):
                made.append(self.make_job(self.composer, job_lines, self.launched))
        return made

    def next_batch(self) -> list[Job]:
        """The next jobs: trials that nobody finishes, those that failed before, and new ones."""
        batch: list[Job] = []
        for trial in self.study.running():
            job = self.job_of(trial)
            if len(batch) < self.n_jobs and self.state_of(job) != "running":
                batch.append(job)
        while self.retries and len(batch) < self.n_jobs:
            trial = self.study.latest()[self.retries.pop(0)]
            # Another command may have retried it.
            if trial.state.name == "FAIL":
                batch.append(self.job_of(trial))
                self.study.add(trial, batch[-1].name)
        while len(batch) < self.n_jobs and self.count() < (self.n_trials or 0):
            new = self.propose()
            if new is None:
                break
            batch.append(new)
        return batch

    def count(self) -> int:
        """The number of trials that count towards `n_trials`: of jobs that the search asked for."""
        from hydra_plugins.resumable_sweeper._study import KNOWN

        return sum(not trial.user_attrs.get(KNOWN) for trial in self.study.latest().values())

    def propose(self) -> Job | None:
        """Make a new trial; None where nothing new is left."""
        attempt = 0
        while attempt < ATTEMPTS:
            before = len(self.study.trials())
            proposal = self.study.ask(self.space, self.seed, attempt)
            job = self.try_job(proposal.params)
            if job is not None:
                self.study.add(proposal, job.name)
                return job
            # With one more known job the sampler may propose something else.
            attempt = 0 if len(self.study.trials()) > before else attempt + 1
        return self.propose_remaining()

    def propose_remaining(self) -> Job | None:
        """A trial of a finite space of which almost everything is known."""
        from optuna.trial import create_trial

        size = self.space.size
        if size is None or size > LARGEST_LISTED:
            print(f"Nothing new among {ATTEMPTS} proposals in a row: the search ends")
            return None
        points = list(self.space.points())
        random.Random(f"{self.seed} {len(self.study.trials())}").shuffle(points)
        for params in points:
            job = self.try_job(params)
            if job is not None:
                distributions = self.space.distributions
                proposal = create_trial(value=0.0, params=params, distributions=distributions)
                self.study.add(proposal, job.name)
                return job
        print(f"All {size} points of the space are known: the search ends")
        return None

    def try_job(self, params: Mapping[str, Any]) -> Job | None:
        """The job of a proposal; None if it is known, finished or refused."""
        known = self.study.latest()
        lines = self.space.lines(params)
        try:
            job = self.make_job(self.composer, lines, len(known))
        except ValueError as error:
            print(f"Not tried: {error}", file=sys.stderr)
            return None
        if job.name in known or self.add_if_finished(job, params):
            return None
        self.refuse_conflicts([job], {job.name: self.state_of(job)})
        self.jobs[job.name] = job
        return job

    def job_of(self, trial: "FrozenTrial") -> Job:
        """The job of a trial, composed as it was when the trial was asked for."""
        from hydra_plugins.resumable_sweeper._study import JOB

        name = trial.user_attrs[JOB]
        if name not in self.jobs:
            planned = jobs.read_plan(self.directory).get(name)
            lines = self.space.lines(trial.params) if planned is None else planned.lines
            job = self.make_job(self.composer, lines, trial.number)
            # A name that contains the job's number stays as it was.
            jobs.place(job.cfg, self.directory, name, self.ignore)
            self.jobs[name] = replace(job, name=name)
        return self.jobs[name]

    # -- results -------------------------------------------------------------------------------

    def settle(self) -> None:
        """Tell the study how trials ended."""
        from optuna.trial import TrialState

        for trial in self.study.running():
            job = self.job_of(trial)
            state = self.state_of(job).partition(":")[0]
            value = self.value_of(job) if state == "completed" else None
            if state == "pruned":
                self.study.tell(trial, TrialState.PRUNED)
            elif state == "completed" and value is not None:
                self.study.tell(trial, TrialState.COMPLETE, value)
            elif state == "running" or (state in UNFINISHED and not self.gave_up(job)):
                continue
            else:
                self.study.tell(trial, TrialState.FAIL)
            if self.dry_run:
                continue
            print(self.describe_trial(self.study.trials()[trial.number]))
            if state == "completed" and value is None:
                print("It has no finite value; the application has to return its objective")

    def gave_up(self, job: Job) -> bool:
        """Whether this command launched a job that then failed, or twice did not finish."""
        return job.name in self.failed or self.launches[job.name] > 1

    def value_of(self, job: Job) -> float | None:
        """The value of a completed job, if it is a finite number."""
        value = self.objective(self.directory / job.name)
        if value is None or not math.isfinite(value):
            return None
        return float(value)

    def unfinished(self) -> int:
        """The number of trials whose jobs are not completed."""
        number = 0
        for trial in self.study.latest().values():
            if trial.state.name in ("FAIL", "RUNNING"):
                number += not is_completed(self.state_of(self.job_of(trial)))
        return number

    # -- words ---------------------------------------------------------------------------------

    def describe_trial(self, trial: "FrozenTrial") -> str:
        """A line of a trial: its number, what came of it, its values and its directory."""
        words = {"COMPLETE": "completed", "PRUNED": "pruned", "FAIL": "failed"}
        state = words.get(trial.state.name, "not finished")
        value = f" {trial.value:.6g}" if trial.value is not None else ""
        values = " ".join(
            f"{key}={dimension.text(trial.params[key])}"
            for key, dimension in self.space.dimensions.items()
        )
        return f"Trial {trial.number} {state}{value}  {values}  {self.job_of(trial).name}"

    def describe_value(self, job: Job) -> str:
        """The value of a job, or how it stands without one."""
        state = self.state_of(job).partition(":")[0]
        value = self.value_of(job) if state == "completed" else None
        return state if value is None else f"{value:.6g}"

    def describe_search(self) -> str:
        """What a dry run prints: the space, what is known, and the first batch."""
        rows = [f"{key}  {dimension}" for key, dimension in self.space.dimensions.items()]
        if self.space.fixed:
            rows.append(f"fixed: {' '.join(self.space.fixed.values())}")
        states = Counter(trial.state.name.lower() for trial in self.study.latest().values())
        known = ", ".join(f"{number} {state}" for state, number in states.items()) or "nothing"
        rows.append(f"known: {known}")
        best = self.study.best()
        if best is not None:
            rows.append(f"best: {self.describe_trial(best)}")
        batch = self.next_batch()
        for job in batch:
            state = self.state_of(job).partition(":")[0]
            values = " ".join(job.lines[len(self.space.fixed) :])
            rows.append(f"{job.name}  {ACTIONS.get(state, 'run again'):9}  {state:11}  {values}")
        if self.confirm:
            rows.append(f"at the end the best again with: {', '.join(self.confirm)}")
        done, total = self.count(), self.n_trials
        rows.append(f"{done} of {total} trials in {self.directory}, the next {len(batch)} included")
        return "\n".join(rows)


def best_quarter_pruner(**options: Any) -> "BasePruner":
    """Make the default pruner. It ends a trial that is not among the best quarter at its step.

    It needs no argument, since Hydra would merge one into those of another pruner. It decides by
    the values alone, so that a search that is killed prunes the same trials; successive halving and
    Hyperband keep a state of their own.

    Args:
        **options: Those of Optuna's PercentilePruner, without the percentile.
    """
    from optuna.pruners import PercentilePruner

    return PercentilePruner(25.0, **options)


def to_plain(value: Any) -> Any:
    """A node of the configuration as plain values."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
