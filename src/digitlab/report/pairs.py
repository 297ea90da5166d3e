"""Compare two settings seed by seed.

Settings that share n seeds differ with each of them. With d and s the mean and the standard
deviation of these n differences, the paired t-test (Student, 1908) has

    t = |d| / (s / sqrt(n)),   df = n - 1                                                      (1)

It detects smaller differences than Welch's test in `statistics` where a seed makes all settings
better or worse alike, as the held-out images that it selects do.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtr

from digitlab.formatting import format_spread
from digitlab.report.statistics import shared_objective


class Pair(NamedTuple):
    """A setting compared with the best one, seed by seed."""

    setting: str
    # The number of seeds that the two share, and with how many of them the best one is better.
    seeds: int
    wins: int
    # Mean of the best setting's cost minus this one's: negative if the best one is better.
    difference: float
    p_value: float


def compare_pairs(runs: pd.DataFrame, best: str, others: Sequence[str]) -> list[Pair]:
    """Compare settings with the best one over the seeds that they share, if two or more.

    The p-values are not corrected for the number of comparisons, nor for the choice of the best.
    """
    objective = shared_objective(runs)
    costs = objective.cost(runs.groupby(["setting", "seed"]).score.mean())
    pairs = []
    for other in others:
        differences = (costs[best] - costs[other]).dropna()
        if len(differences) > 1:
            wins, mean = int((differences < 0).sum()), float(differences.mean())
            p_value = paired_p_value(differences.to_numpy())
            pairs.append(Pair(other, len(differences), wins, mean, p_value))
    return pairs


def paired_p_value(differences: np.ndarray) -> float:
    """Return the two-sided p-value of paired differences, (N,)."""
    mean, spread = differences.mean(), differences.std(ddof=1)
    # Differences of equal scores vary by rounding.
    if spread <= 1e-9 * abs(mean) or spread == 0:
        return 0.0 if mean else 1.0
    number = len(differences)
    return float(2 * stdtr(number - 1, -abs(mean) / (spread / math.sqrt(number))))  # (1)


def correct_p_values(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm, 1979), in their order."""
    order = np.argsort(p_values)
    steps = np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return [float(p_value) for p_value in corrected]


def describe_pair(pair: Pair, settings: int) -> str:
    """Say in a sentence how the best two of several settings compare seed by seed."""
    change = "worse " if pair.difference > 0 else ""
    text = (
        f"Seed by seed, over the {pair.seeds} seeds that both have: the first is better with"
        f" {pair.wins}, and on average {change}by {format_spread(abs(pair.difference))}"
        f" (paired t-test: p {format_p(pair.p_value)}"
    )
    if settings > 2:
        text += f", not corrected for the choice of two among {settings} settings"
    return f"{text})."


def format_p(p_value: float) -> str:
    """Format a p-value behind its sign."""
    return f"= {p_value:.2g}" if p_value >= 0.001 else "< 0.001"
