"""Pruning: a search ends a run early whose epochs are worse than those of other trials."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from digitlab.models import checkpoints
from digitlab.models.base import find_objective
from digitlab.training.callbacks import EpochCallback
from hydra_plugins.resumable_sweeper import Trial

DIRECTIONS = {"min": "minimize", "max": "maximize"}


class Pruning(EpochCallback):
    """Report the objective of each epoch to the search, and stop when it gives the run up.

    The decision is part of the checkpoint: it reaches the main process when DDP trains in others,
    and a run that is killed after it does not train on.
    """

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.pruned = False

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Refuse a search in the wrong direction."""
        objective = find_objective(module)
        direction = DIRECTIONS[objective.direction]
        if self.trial.direction != direction:
            raise ValueError(
                f"hydra.sweeper.direction={self.trial.direction}: does not fit the objective"
                f" {objective.name}; search with hydra.sweeper.direction={direction}"
            )

    def on_epoch_row(
        self, trainer: Trainer, module: LightningModule, row: dict[str, float]
    ) -> None:
        """Report the epoch's objective, if the model logs it by epoch."""
        objective, epoch = find_objective(module), trainer.current_epoch + 1
        names = [name for name in (objective.name, objective.on("train")) if name in row]
        if not names:
            return
        gives_up = trainer.is_global_zero and self.trial.report(row[names[0]], epoch)
        gives_up = bool(trainer.strategy.broadcast(gives_up))
        if gives_up and epoch != trainer.max_epochs:
            self.pruned = trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """Return the decision, if it is made: Lightning warns of a state that nobody restores."""
        return {"pruned": True} if self.pruned else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the decision."""
        self.pruned = state["pruned"]


def was_pruned(directory: Path) -> bool:
    """Whether a search gave up the run in a directory, by its last checkpoint."""
    states = checkpoints.read_checkpoint(directory / "checkpoints" / "last.ckpt")["callbacks"]
    return bool(states.get(Pruning.__qualname__, {}).get("pruned"))
