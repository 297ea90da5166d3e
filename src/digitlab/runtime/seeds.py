"""Independent streams of random numbers from one seed.

Each purpose has its own stream, so drawing more numbers for one purpose never shifts another. The
order of an epoch depends only on the seed and the epoch: that makes a resumed run equal an
uninterrupted one.
"""

from enum import IntEnum

import numpy as np
import torch
from lightning.pytorch import seed_everything


class Stream(IntEnum):
    """The purpose of the random numbers."""

    SPLIT = 0
    INIT = 1
    ORDER = 2
    REASSIGN = 3
    PRIOR = 4
    CLASSIFIER = 5
    EPOCH = 6
    POSTERIOR = 7


def generator(seed: int, stream: Stream, *position: int) -> torch.Generator:
    """Make a CPU generator for one purpose and one position, such as an epoch or a step."""
    state = np.random.SeedSequence([seed, stream, *position]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def seed_globally(seed: int, stream: Stream, *position: int) -> None:
    """Seed the global generators of Python, numpy and torch for one purpose and one position."""
    state = np.random.SeedSequence([seed, stream, *position]).generate_state(1, np.uint32)
    seed_everything(int(state[0]), verbose=False)
