"""A Lightning Trainer that depends only on its arguments."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments.lightning import (
    LightningEnvironment,
    find_free_network_port,
)
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import (
    AdvancedProfiler,
    Profiler,
    PyTorchProfiler,
    SimpleProfiler,
)

from digitlab.runtime import signals

# Lightning logs the same hints for every job and every checkpoint.
for library in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(library).setLevel(logging.WARNING)
# Lightning reads defaults of the Trainer from PL_TRAINER_*. With TORCHELASTIC_*, torch expects a
# server that torchrun started.
HIDDEN = ("PL_TRAINER_", "TORCHELASTIC_")

PROFILERS: dict[str, type[Profiler]] = {
    "simple": SimpleProfiler,
    "advanced": AdvancedProfiler,
    "pytorch": PyTorchProfiler,
}


class OneMachine(LightningEnvironment):
    """An environment whose processes run on this machine and are started by the Trainer.

    Lightning's own environment reads LOCAL_RANK, MASTER_ADDR and similar variables, which a
    scheduler may have set for another purpose.
    """

    def __init__(self) -> None:
        super().__init__()
        self._parent = os.getpid()

    @property
    def creates_processes_externally(self) -> bool:
        """False: the Trainer starts its processes."""
        return False

    @property
    def main_address(self) -> str:
        """The loopback address: all processes are on this machine."""
        return "127.0.0.1"

    @property
    def main_port(self) -> int:
        """A free port, the same for all processes."""
        if self._main_port == -1:
            self._main_port = find_free_network_port()
        return self._main_port

    def local_rank(self) -> int:
        """Return the number of this process; Lightning sets it in the spawned ones."""
        return int(os.environ["LOCAL_RANK"]) if os.getpid() != self._parent else 0

    def node_rank(self) -> int:
        """Return 0: there is only one machine."""
        return 0


class StopOnSignal(Callback):
    """Make the end of each batch a safe point for signals."""

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Stop here if a signal has arrived."""
        signals.safe_point()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: Any,
        index: int,
        loader: int = 0,
    ) -> None:
        """Stop here if a signal has arrived."""
        signals.safe_point()


@contextmanager
def hidden_variables() -> Iterator[None]:
    """Hide the environment variables that change the defaults of a Trainer."""
    hidden = {name: value for name, value in os.environ.items() if name.startswith(HIDDEN)}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def make_trainer(
    directory: Path,
    callbacks: Sequence[Callback] = (),
    plugins: Sequence[Any] = (),
    loggers: Sequence[Logger] = (),
    **options: Any,
) -> Trainer:
    """Make a Trainer that ignores a scheduler's variables and reads files only in `directory`.

    With Slurm's variables set, Lightning would continue from any `hpc_ckpt_N.ckpt` in the working
    directory. The run's own log and progress are left to the callbacks.
    """
    with hidden_variables():
        return Trainer(
            default_root_dir=directory,
            callbacks=[StopOnSignal(), *callbacks],
            plugins=[OneMachine(), *plugins],
            logger=list(loggers) or False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            **options,
        )


def make_profiler(name: str, directory: Path) -> Profiler | str:
    """Make a profiler of Lightning's that writes fit-profile.txt into a directory.

    One that has no file, such as `xla`, is left to the Trainer.
    """
    cls = PROFILERS.get(name.lower())
    return name if cls is None else cls(dirpath=directory, filename="profile")


def try_trainer(options: dict[str, Any]) -> None:
    """Make a Trainer with some options. Raises ValueError if Lightning refuses them."""
    # These change the state of torch at once.
    tried = {key: options[key] for key in options if key not in ("deterministic", "benchmark")}
    try:
        make_trainer(Path(), accelerator="cpu", devices=1, **tried)
    except (MisconfigurationException, ValueError, TypeError) as error:
        values = " ".join(f"trainer.{key}={value}" for key, value in options.items())
        raise ValueError(f"{values}: {' '.join(str(error).split())}") from error
