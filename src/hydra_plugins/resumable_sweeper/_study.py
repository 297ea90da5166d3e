"""The study of a search on disk: Optuna's journal in the search's directory.

A trial appears in the journal whole, with its parameters and the name of its job, before the job
starts, and gets its value after the job has recorded it. Killing any process at any moment
therefore leaves a journal from which the search goes on. Proposals are drawn in memory by a sampler
that is made for each one, so that they follow from the trials and the seed alone.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from copy import copy
from functools import lru_cache
from inspect import signature
from pathlib import Path
from typing import Any

import optuna
from hydra.utils import get_object, instantiate
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState, create_trial

from hydra_plugins.resumable_sweeper import jobs
from hydra_plugins.resumable_sweeper._space import Space

JOURNAL = "study.journal"
JOURNAL_LOCK = ".study.journal.lock"
# Attributes of a trial.
JOB = "job"
KNOWN = "known"

optuna.logging.set_verbosity(optuna.logging.WARNING)


class JournalLock(JournalFileOpenLock):
    """Locks the journal. The system releases the lock of a process that dies; Optuna's stays."""

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal))
        self.journal = journal
        self.held = ExitStack()

    def acquire(self) -> bool:
        """Wait for the lock, and remove a line that a killed process did not finish."""
        self.held.enter_context(jobs.hold_lock(self.journal.with_name(JOURNAL_LOCK)))
        with self.journal.open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                if file.read() != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        """Release the lock."""
        self.held.close()


def open_storage(directory: Path) -> JournalStorage:
    """The journal of a search; a new one if there is none."""
    path = directory / JOURNAL
    return JournalStorage(JournalFileBackend(str(path), lock_obj=JournalLock(path)))


class Study:
    """The trials of one search: of one fixed configuration, over one set of keys."""

    def __init__(
        self,
        directory: Path,
        name: str,
        direction: str,
        sampler: Mapping[str, Any],
        pruner: Mapping[str, Any] | None,
        *,
        write: bool,
    ) -> None:
        self.name = name
        self.direction = optuna.study.StudyDirection[direction.upper()]
        self.sampler, self.pruner = dict(sampler), pruner
        storage = None
        if write or (directory / JOURNAL).exists():
            storage = open_storage(directory)
        if not write:
            # A dry run draws in a copy.
            self.study = self._in_memory(0)
            if storage is not None and name in optuna.get_all_study_names(storage):
                for trial in optuna.load_study(study_name=name, storage=storage).trials:
                    self.study.add_trial(trial)
            return
        assert storage is not None
        if name not in optuna.get_all_study_names(storage):
            optuna.create_study(
                study_name=name,
                storage=storage,
                direction=self.direction,
                load_if_exists=True,
            )
        self.study = optuna.load_study(
            study_name=name, storage=storage, sampler=make_sampler(self.sampler, 0)
        )

    def _in_memory(self, seed: int) -> optuna.Study:
        return optuna.create_study(
            study_name=self.name,
            direction=self.direction,
            sampler=make_sampler(self.sampler, seed),
            pruner=make_pruner(self.pruner),
        )

    def trials(self) -> list[FrozenTrial]:
        """All trials, in the order of their numbers."""
        return self.study.trials

    def running(self) -> list[FrozenTrial]:
        """The trials that have not ended."""
        return [trial for trial in self.trials() if trial.state == TrialState.RUNNING]

    def latest(self) -> dict[str, FrozenTrial]:
        """The last trial of each job: of a job that failed there may be several."""
        return {trial.user_attrs[JOB]: trial for trial in self.trials()}

    def best(self) -> FrozenTrial | None:
        """The best completed trial, if there is one."""
        completed = [trial for trial in self.trials() if trial.state == TrialState.COMPLETE]
        sign = -1 if self.direction == optuna.study.StudyDirection.MAXIMIZE else 1
        return min(completed, key=lambda trial: sign * (trial.value or 0.0), default=None)

    def ask(self, space: Space, seed: int, attempt: int) -> FrozenTrial:
        """A proposal, which is no trial yet.

        Args:
            space: What the command leaves to the search. Trials outside it are not shown to the
                sampler.
            seed: The seed of the search.
            attempt: Numbers the proposals between two trials.
        """
        trials = self.trials()
        text = f"{seed} {len(trials)} {attempt}".encode()
        study = self._in_memory(int.from_bytes(hashlib.sha256(text).digest()[:4]))
        for trial in trials:
            study.add_trial(_within(trial, space))
        study.ask(space.distributions)
        proposal = study.trials[-1]
        proposal.params = space.shorten(proposal.params)
        return proposal

    def add(self, proposal: FrozenTrial, job: str) -> None:
        """Make a proposal a trial, which its job is about to run."""
        self.study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=proposal.params,
                distributions=proposal.distributions,
                user_attrs={JOB: job},
                system_attrs=proposal.system_attrs,
            )
        )

    def add_known(
        self, space: Space, params: Mapping[str, Any], job: str, state: str, value: float | None
    ) -> None:
        """Add a job that was finished before the search asked for it."""
        pruned = state == "pruned"
        self.study.add_trial(
            create_trial(
                state=TrialState.PRUNED if pruned else TrialState.COMPLETE,
                params=dict(params),
                distributions=space.distributions,
                value=None if pruned else value,
                user_attrs={JOB: job, KNOWN: True},
            )
        )

    def tell(self, trial: FrozenTrial, state: TrialState, value: float | None = None) -> None:
        """Say how a trial ended, unless another process has said it."""
        self.study.tell(trial.number, value, state, skip_if_finished=True)


def _within(trial: FrozenTrial, space: Space) -> FrozenTrial:
    """A trial as one of a space; an empty failed one, which keeps the numbers, if it is outside."""
    params = space.fit(trial.params)
    if params is None or trial.state == TrialState.FAIL:
        return create_trial(state=TrialState.FAIL)
    return create_trial(
        state=trial.state,
        value=trial.value,
        params=params,
        distributions=space.distributions,
        user_attrs=trial.user_attrs,
        system_attrs=trial.system_attrs,
        intermediate_values=trial.intermediate_values,
    )


def make_sampler(options: Mapping[str, Any], seed: int) -> optuna.samplers.BaseSampler:
    """The sampler that options describe, seeded unless they seed it or it takes no seed."""
    parameters = signature(get_object(options["_target_"])).parameters
    seeded = {"seed": seed} if "seed" in parameters else {}
    sampler: optuna.samplers.BaseSampler = instantiate(seeded | dict(options))
    return sampler


def make_pruner(options: Mapping[str, Any] | None) -> optuna.pruners.BasePruner:
    """The pruner that options describe; None: one that never prunes."""
    pruner: optuna.pruners.BasePruner
    pruner = optuna.pruners.NopPruner() if options is None else instantiate(options)
    return pruner


@lru_cache(maxsize=1)
def _open_once(directory: Path, inode: int) -> JournalStorage:
    """The journal, of which the next report then reads the new lines only."""
    return open_storage(directory)


def is_trial(directory: Path, job: str) -> bool:
    """Whether a job is a trial of the search, in whatever state."""
    return any(trial.user_attrs.get(JOB) == job for _, trial in _read_trials(directory))


def _read_trials(directory: Path) -> Iterator[tuple[str, FrozenTrial]]:
    """All trials in the journal, each with the name of its study; not to be changed."""
    try:
        storage = _open_once(directory, (directory / JOURNAL).stat().st_ino)
    except FileNotFoundError:
        return
    for name in optuna.get_all_study_names(storage):
        study = optuna.load_study(study_name=name, storage=storage)
        for trial in study.get_trials(deepcopy=False):
            yield name, trial


def report(
    directory: Path, job: str, pruner: Mapping[str, Any] | None, value: float, step: int
) -> bool:
    """Write what a job reports into the journal; returns whether the pruner gives it up."""
    for name, trial in _read_trials(directory):
        if trial.user_attrs.get(JOB) == job and trial.state == TrialState.RUNNING:
            storage = _open_once(directory, (directory / JOURNAL).stat().st_ino)
            study = optuna.load_study(study_name=name, storage=storage, pruner=make_pruner(pruner))
            return _report(study, storage, copy(trial), value, step)
    return False


def _report(
    study: optuna.Study, storage: JournalStorage, trial: FrozenTrial, value: float, step: int
) -> bool:
    identity = storage.get_trial_id_from_study_id_trial_number(
        storage.get_study_id_from_name(study.study_name), trial.number
    )
    storage.set_trial_intermediate_value(identity, step, value)
    # Steps that the job reported before it was killed come again.
    earlier = {key: each for key, each in trial.intermediate_values.items() if key < step}
    trial.intermediate_values = earlier | {step: value}
    return study.pruner.prune(study, trial)
