"""How far the training in this process is, for the live table of a sweep. Imports nothing slow."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Training:
    """How far a training is. Its `Progress` callback writes, another thread may read."""

    steps: int = 0
    total_steps: int = 0
    epoch: int = 0
    """How many epochs have ended."""
    epochs: int = 0
    measure: str = ""
    """The metric that selects the best epoch."""
    value: float | None = None
    """Its value in the last epoch."""

    @property
    def share(self) -> float:
        """The share of the steps that are done."""
        return min(1.0, self.steps / self.total_steps) if self.total_steps else 0.0


_watched: Training | None = None


def watched() -> Training | None:
    """The training that somebody watches in this process; None without a watcher."""
    return _watched


@contextmanager
def watch() -> Iterator[Training]:
    """Watch the training inside the block. It then shows no progress bar of its own."""
    global _watched
    _watched = training = Training()
    try:
        yield training
    finally:
        _watched = None
