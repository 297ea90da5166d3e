"""Format losses and their spreads with significant digits at any size. Imports nothing slow."""

import math

# Below this, four decimal places would leave less than two significant digits.
SMALL = 0.001
# Above this, a loss has diverged.
LARGE = 10


def format_loss(loss: float) -> str:
    """Format a loss with four decimal places, a small one with three digits, a large with four."""
    if abs(loss) < SMALL:
        return f"{loss:#.3g}"
    return f"{loss:.4f}" if abs(loss) < LARGE else f"{loss:.4g}"


def format_spread(spread: float) -> str:
    """Format a spread with four decimal places, a small one with two digits, a large with four.

    NaN becomes an empty string.
    """
    if math.isnan(spread):
        return ""
    if spread < SMALL:
        return f"{spread:.2g}"
    return f"{spread:.4f}" if spread < LARGE else f"{spread:.4g}"
