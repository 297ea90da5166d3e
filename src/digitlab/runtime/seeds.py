"""Independent streams of random numbers from one seed.

Each use has its own stream, so that drawing more for one never shifts another, and an epoch's order
depends on the seed and the epoch alone: that is what makes a resumed run equal an uninterrupted one.
"""

from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """What the numbers are for."""

    SPLIT = 0
    INIT = 1
    ORDER = 2
    REASSIGN = 3
    PRIOR = 4
    JUDGE = 5


def generator(seed: int, stream: Stream, *position: int) -> torch.Generator:
    """A CPU generator for one use, at one position in it (the epoch or the step, say)."""
    state = np.random.SeedSequence([seed, stream, *position]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))
