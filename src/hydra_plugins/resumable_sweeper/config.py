"""The sweeper's options, registered with Hydra.

Hydra imports this file at every start of every application, so it imports nothing but Hydra.
"""

from dataclasses import dataclass, field
from inspect import signature
from typing import Any, Dict, List, Optional  # noqa: UP035  (OmegaConf 2.3 reads these)

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf


@dataclass
class CommonConf:
    """The options that grids and searches share."""

    params: Optional[Dict[str, str]] = None  # noqa: UP006, UP045
    """Swept values by key, as the basic sweeper's. The command line overrides them."""
    dry_run: bool = False
    """Print the jobs and what would happen to each, and start none."""
    ignore: List[str] = field(default_factory=list)  # noqa: UP006
    """Keys that change no result: they do not enter a job's digest."""
    check: Optional[str] = None  # noqa: UP045
    """Dotted name of a function of a job's configuration that raises ValueError for a bad one."""
    state: Optional[str] = None  # noqa: UP045
    """Dotted name of a function (directory, name) -> state. By default records are kept."""
    report: Optional[str] = None  # noqa: UP045
    """Dotted name of a function of the sweep's directory, called at the end."""


@dataclass
class ResumableSweeperConf(CommonConf):
    """The options of `hydra/sweeper=resumable`."""

    _target_: str = "hydra_plugins.resumable_sweeper.sweeper.ResumableSweeper"
    max_batch_size: Optional[int] = None  # noqa: UP045
    """At most so many jobs are handed to the launcher at a time."""
    force: bool = False
    """Run completed jobs again. After an interruption the same command runs the remaining ones."""


@dataclass
class ResumableOptunaSweeperConf(CommonConf):
    """The options of `hydra/sweeper=resumable_optuna`."""

    _target_: str = "hydra_plugins.resumable_sweeper.search.ResumableOptunaSweeper"
    # Sampler and pruner are instantiated by the sweeper, new ones for each trial.
    _recursive_: bool = False
    n_trials: Optional[int] = None  # noqa: UP045
    """How many trials to run in all, those of earlier commands included."""
    n_jobs: int = 1
    """How many trials are handed to the launcher at a time."""
    direction: str = "minimize"
    """Whether lower values are better, or higher ones: minimize or maximize."""
    seed: int = 0
    """Seeds the sampler, together with the number of trials so far."""
    sampler: Dict[str, Any] = field(  # noqa: UP006
        default_factory=lambda: {"_target_": "optuna.samplers.TPESampler"}
    )
    """The class that proposes trials, and its arguments."""
    pruner: Optional[Dict[str, Any]] = field(  # noqa: UP006, UP045
        default_factory=lambda: {
            "_target_": "hydra_plugins.resumable_sweeper.search.best_quarter_pruner"
        }
    )
    """The class that ends hopeless trials early, and its arguments; null: none does."""
    objective: Optional[str] = None  # noqa: UP045
    """Dotted name of a function directory -> value. By default what the job returned counts."""
    confirm: List[str] = field(default_factory=list)  # noqa: UP006
    """Overrides with each of which the best trial runs again at the end, such as seed=1."""


def digest_resolver(*ignored: str, _root_: DictConfig) -> str:
    """`${digest:}`, or `${digest:seed,data.root}` without these keys: identifies a job's values."""
    from hydra_plugins.resumable_sweeper.jobs import digest

    return digest(_root_, ignored)


def register() -> None:
    """Make the options and the resolver known to Hydra and OmegaConf."""
    nodes: dict[str, Any] = {
        "resumable": ResumableSweeperConf,
        "resumable_optuna": ResumableOptunaSweeperConf,
    }
    for name, node in nodes.items():
        ConfigStore.instance().store(
            group="hydra/sweeper", name=name, node=node, provider="hydra_resumable_sweeper"
        )
    # OmegaConf 2.4 gives the name register_resolver to what 2.3 calls register_new_resolver.
    register_resolver: Any = OmegaConf.register_resolver
    if "replace" not in signature(register_resolver).parameters:
        register_resolver = OmegaConf.register_new_resolver
    register_resolver("digest", digest_resolver, replace=True)


register()
