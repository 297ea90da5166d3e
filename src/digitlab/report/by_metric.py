"""Rank runs by another metric than the one by which they were trained and selected."""

from typing import NamedTuple

import pandas as pd

from digitlab.report.table import METRIC
from digitlab.runs.results import Objective

PARTS = ("train", "test")


class Criterion(NamedTuple):
    """A metric to rank by, and whether lower (`min`) or higher (`max`) values are better."""

    metric: str
    direction: str | None = None
    """None takes the direction of the objective, if that measures the same."""


def rescore(table: pd.DataFrame, criterion: Criterion) -> tuple[pd.DataFrame, list[str]]:
    """Make a metric the score of all completed runs.

    Returns:
        The table without the completed runs that lack the metric, and sentences: that this is a
        choice after the fact, and how many runs are left out.

    Raises:
        ValueError: No completed run has the metric, or its direction is not known.
    """
    metric, completed = criterion.metric, table.status == "completed"
    names = [name for name in table if METRIC.fullmatch(name) and "/" in name]
    if metric not in names or table.loc[completed, metric].isna().all():
        raise ValueError(
            f"--by {metric}: no completed run has this metric; choose one of {', '.join(names)}"
        )
    pairs = table.loc[completed, ["score_name", "direction"]].drop_duplicates()
    objectives = [Objective(*pair) for pair in pairs.itertuples(index=False)]
    scores = Objective(metric, criterion.direction or find_direction(metric, objectives))
    lacking = completed & table[metric].isna()
    table = table.assign(
        score=table.score.where(~completed, table[metric]),
        score_name=table.score_name.where(~completed, scores.name),
        direction=table.direction.where(~completed, scores.direction),
    )
    if not all(measures(metric, objective) for objective in objectives):
        # Baselines are values of the objective; those of another metric are not known.
        table = table.drop(columns=[name for name in table if name.startswith("baseline/")])
    # A search chose its trials by their objective: another metric has no result of it.
    table = table.drop(columns="trial", errors="ignore")
    sentences = [explain_choice(scores, objectives)]
    if lacking.any():
        count = f"{lacking.sum()} of {completed.sum()} completed runs"
        sentences.append(f"{count} have no {metric} and are left out.")
    return table[~lacking], sentences


def measures(metric: str, objective: Objective) -> bool:
    """Whether a metric is the objective, on any part of the data."""
    return metric in (objective.name, f"val/{objective.measure}", *map(objective.on, PARTS))


def find_direction(metric: str, objectives: list[Objective]) -> str:
    """The direction of the objective that measures the same. Raises ValueError without one."""
    for objective in objectives:
        if measures(metric, objective):
            return objective.direction
    raise ValueError(f"--by {metric}: say whether higher or lower is better; add --max or --min")


def explain_choice(scores: Objective, objectives: list[Objective]) -> str:
    """Say what it means to rank by a metric that was chosen after the fact."""
    order = "highest" if scores.direction == "max" else "lowest"
    names = " and ".join(dict.fromkeys(objective.name for objective in objectives))
    text = (
        f"Ranked by {scores.name}, {order} first: a choice after the fact. The runs were selected"
        f" by {names}, and among many metrics and settings some look good by chance: confirm the"
        " first setting with new seeds."
    )
    if scores.name.startswith("test/"):
        text += " The test images that chose it no longer measure it without bias."
    return text
