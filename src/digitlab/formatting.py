"""Losses and their spreads as text, with significant digits at any size. Imports nothing slow."""

import math

SMALL = 0.001  # four places would leave one significant digit below it
LARGE = 10  # of a loss that exploded


def format_loss(loss: float) -> str:
    """A loss in four places, as MNIST's; a small one in three digits, a large one in four."""
    if abs(loss) < SMALL:
        return f"{loss:#.3g}"
    return f"{loss:.4f}" if loss < LARGE else f"{loss:.4g}"


def format_spread(spread: float) -> str:
    """A spread in four places; a small one in two digits, a large one in four; NaN as nothing."""
    if math.isnan(spread):
        return ""
    if spread < SMALL:
        return f"{spread:.2g}"
    return f"{spread:.4f}" if spread < LARGE else f"{spread:.4g}"
