"""What a job of a search calls to report how it is doing: `report_step`.

Hydra executes the modules of plugins again at each start, but none whose name begins with an
underscore, so the classes here stay the same. Imports Optuna only in a search.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf


class Pruned(Exception):
    """Raised by a job that ends because `report_step` said so. It is no failure."""


def report_step(value: float, step: int) -> bool:
    """Report the objective after a step of a job, such as an epoch.

    Args:
        value: The objective so far, in the direction of the search.
        step: The number of the step. A job reports it before it saves a checkpoint of it; a step
            that it reports again replaces the earlier value.

    Returns:
        Whether the search's pruner gives the trial up. The job then saves what it wants to keep,
        and raises `Pruned`. Always False in a job that is no trial.
    """
    trial = current_trial()
    return trial is not None and trial.report(value, step)


@dataclass(frozen=True)
class Trial:
    """The trial that a job belongs to. May be pickled, for other processes of the job."""

    directory: Path
    """The directory of the search."""
    job: str
    """The name of the job's directory in it."""
    pruner: dict[str, Any] | None
    """The option `pruner` of the search."""
    direction: str
    """The option `direction` of the search: minimize or maximize."""

    def report(self, value: float, step: int) -> bool:
        """As `report_step`."""
        from hydra_plugins.resumable_sweeper._study import report

        return report(self.directory, self.job, self.pruner, float(value), step)


def current_trial() -> Trial | None:
    """The trial of the job that this process runs.

    None outside a search, and in a job that runs the best trial again for `confirm`.
    """
    if not HydraConfig.initialized():
        return None
    settings = HydraConfig.get()
    if settings.mode != RunMode.MULTIRUN or "pruner" not in settings.sweeper:
        return None
    from hydra_plugins.resumable_sweeper._study import is_trial

    directory, job = Path(settings.sweep.dir), settings.sweep.subdir
    if not is_trial(directory, job):
        return None
    pruner: Any = settings.sweeper.pruner
    if pruner is not None:
        pruner = OmegaConf.to_container(pruner, resolve=True)
    return Trial(directory, job, pruner, settings.sweeper.direction)
