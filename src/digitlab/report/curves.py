"""Learning curves by setting, and the settings that no other one beats in two respects."""

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from digitlab.report.run_files import read_history
from digitlab.report.statistics import mean_scores, shared_objective
from digitlab.runs.results import Objective

# More curves in one chart could not be distinguished, and more points of a curve not be seen.
MAX_CURVES = 8
MAX_POINTS = 60


class Curve(NamedTuple):
    """A metric by epoch, as mean and standard deviation over the seeds of a setting."""

    setting: str
    seeds: int
    epochs: list[float]
    means: list[float]
    # Zero where a single seed has the epoch.
    spreads: list[float]


def learning_curves(runs: pd.DataFrame) -> dict[str, list[Curve]]:
    """Read the curves of the best settings from the metrics.csv of their runs.

    Returns:
        For the objective and its training value, as far as the runs logged them, a curve for each
        setting, best first.
    """
    objective = shared_objective(runs)
    means = mean_scores(runs)
    histories = {}
    for setting in means.index[:MAX_CURVES]:
        paths = runs.run[runs.setting == setting]
        histories[setting] = [history for path in paths if (history := read_history(Path(path)))]
    curves = {}
    names = (f"val/{objective.measure}", objective.name, objective.on("train"))
    for metric in dict.fromkeys(names):
        drawable = []
        for setting, own in histories.items():
            having = [history for history in own if metric in history]
            if having:
                drawable.append(average(setting, having, metric))
        drawable = [curve for curve in drawable if len(curve.epochs) > 1]
        if drawable:
            curves[metric] = drawable
    return curves


def average(setting: str, histories: Sequence[dict[str, list[float]]], metric: str) -> Curve:
    """Average a metric over the runs of a setting, epoch by epoch."""
    values: dict[float, list[float]] = defaultdict(list)
    for history in histories:
        for epoch, value in zip(history["epoch"], history[metric], strict=True):
            if math.isfinite(epoch) and math.isfinite(value):
                values[epoch].append(value)
    epochs = thin(sorted(values))
    means = [float(np.mean(values[epoch])) for epoch in epochs]
    spreads = []
    for epoch in epochs:
        own = values[epoch]
        spreads.append(float(np.std(own, ddof=1)) if len(own) > 1 else 0.0)
    return Curve(setting, len(histories), epochs, means, spreads)


def thin(epochs: list[float]) -> list[float]:
    """At most MAX_POINTS of the epochs, at equal distances, with the first and the last one."""
    if len(epochs) <= MAX_POINTS:
        return epochs
    return [epochs[round(place)] for place in np.linspace(0, len(epochs) - 1, MAX_POINTS)]


class Tradeoff(NamedTuple):
    """Two metrics of each setting, as means over its seeds."""

    x: Objective | None
    """None stands for the time of training."""
    y: Objective
    # The columns setting, seeds, x, y and is_front: no other setting is better in one of the two
    # and at least as good in the other.
    points: pd.DataFrame


def find_tradeoffs(runs: pd.DataFrame) -> list[Tradeoff]:
    """Compare quality with time, and reconstruction with generation if the runs have both."""
    objective = shared_objective(runs)
    tradeoffs = [compare_metrics(runs, "fit_seconds", None, "score", objective)]
    reconstruction, generation = Objective("test/loss"), Objective("generated/fid")
    if {reconstruction.name, generation.name} <= {*runs.columns}:
        names = (reconstruction.name, reconstruction, generation.name, generation)
        tradeoffs.append(compare_metrics(runs, *names))
    return [tradeoff for tradeoff in tradeoffs if len(tradeoff.points) > 1]


def compare_metrics(
    runs: pd.DataFrame, x_column: str, x: Objective | None, y_column: str, y: Objective
) -> Tradeoff:
    """Average two columns over the seeds of each setting and find the front."""
    known = runs[runs[x_column].notna() & runs[y_column].notna()]
    groups = known.groupby("setting", sort=False)
    points = groups.agg(x=(x_column, "mean"), y=(y_column, "mean"), seeds=("seed", "size"))
    points = points.reset_index()
    x_costs = points.x if x is None else x.cost(points.x)
    points["is_front"] = find_front(x_costs.to_numpy(), y.cost(points.y).to_numpy())
    return Tradeoff(x, y, points)


def find_front(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which of N points no other one dominates, where lower is better, (N,)."""
    is_front, lowest = np.zeros(len(x), bool), math.inf
    # By x, and by y where x is equal: a point is on the front if it lowers y further.
    for index in np.lexsort((y, x)):
        if y[index] < lowest:
            is_front[index], lowest = True, y[index]
    return is_front
