"""Lightning's Trainer, made to depend on nothing but its arguments."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments.lightning import (
    LightningEnvironment,
    find_free_network_port,
)
from lightning.pytorch import Callback, LightningModule, Trainer

from digitlab.runtime import signals

# Lightning takes defaults of the Trainer from the first; torch looks for a server that torchrun
# started where one of the second says so.
HIDDEN = ("PL_TRAINER_", "TORCHELASTIC_")


class OneMachine(LightningEnvironment):
    """Processes on this machine that the Trainer starts itself.

    Lightning's own environment obeys LOCAL_RANK, MASTER_ADDR and the like, which a scheduler may
    have set for another purpose.
    """

    def __init__(self) -> None:
        super().__init__()
        self._parent = os.getpid()

    @property
    def creates_processes_externally(self) -> bool:
        """Nobody else starts processes."""
        return False

    @property
    def main_address(self) -> str:
        """All processes are on this machine."""
        return "127.0.0.1"

    @property
    def main_port(self) -> int:
        """A free port, the same for all processes."""
        if self._main_port == -1:
            self._main_port = find_free_network_port()
        return self._main_port

    def local_rank(self) -> int:
        """The number of a spawned process, which Lightning puts into its environment."""
        return int(os.environ["LOCAL_RANK"]) if os.getpid() != self._parent else 0

    def node_rank(self) -> int:
        """There is one machine."""
        return 0


class StopOnSignal(Callback):
    """Make the end of each batch a safe point for signals."""

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Stop here if a signal was noted."""
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
        """Stop here if a signal was noted."""
        signals.safe_point()


@contextmanager
def hidden_variables() -> Iterator[None]:
    """Hide the environment variables that would change what a Trainer does."""
    found = {name: value for name, value in os.environ.items() if name.startswith(HIDDEN)}
    for name in found:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(found)


def make_trainer(
    directory: Path,
    callbacks: Sequence[Callback] = (),
    plugins: Sequence[Any] = (),
    **options: Any,
) -> Trainer:
    """A Trainer that reads no scheduler's variables, and looks for files in `directory` alone.

    Under Slurm's variables Lightning would continue from any `hpc_ckpt_N.ckpt` in the working
    directory. Logging and progress are the callbacks' own.
    """
    with hidden_variables():
        return Trainer(
            default_root_dir=directory,
            callbacks=[StopOnSignal(), *callbacks],
            plugins=[OneMachine(), *plugins],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            **options,
        )
