"""What a report finds out: the ranking of the settings and the jobs that did not complete."""

from functools import partial

import pandas as pd

from digitlab.formatting import format_loss, format_spread
from digitlab.report.sentences import format_number
from digitlab.report.statistics import average_baselines, shared_objective, short_name


def rank(runs: pd.DataFrame, settings: list[str]) -> pd.DataFrame:
    """Rank the settings by their mean score: one row per setting, best first."""
    if not len(runs):
        return pd.DataFrame()
    rows, objective = [], shared_objective(runs)
    test = objective.on("test")
    # Settings may also vary only in the runs that are not compared.
    varied = [key for key in settings if runs[key].nunique(dropna=False) > 1]
    for _, group in runs.groupby(settings or "setting", dropna=False):
        first = group.iloc[0]
        row = {short_name(key): first[key] for key in varied} or {"setting": first.setting}
        row |= {"seeds": len(group), objective.name: group.score.mean()}
        row |= {"spread": group.score.std()}
        if test in group and group[test].notna().any():
            row[test] = group[test].mean()
            for name, value in average_baselines(group).items():
                if value > 0:
                    row[f"of {name}"] = f"{row[test] / value:.2f}x"
        row |= {"seconds": group.seconds.mean(), "other": " ".join(sorted(set(group.other)))}
        rows.append(row)
    ranking = pd.DataFrame(rows)
    ranking = ranking.sort_values(objective.name, key=objective.cost, ignore_index=True)
    formats = {"spread": format_spread, "seconds": partial(format_number, places=1)}
    for name in ranking.select_dtypes("float"):
        ranking[name] = ranking[name].map(formats.get(name, format_loss))
    return ranking.replace("", pd.NA).dropna(axis="columns", how="all").fillna("")


def sort_incomplete(table: pd.DataFrame) -> pd.DataFrame:
    """Select the runs and jobs that have not completed, sorted by setting and seed."""
    return table[table.status != "completed"].sort_values(["setting", "seed"])


def list_failures(table: pd.DataFrame) -> pd.DataFrame:
    """List the runs and jobs that have not completed and were not pruned, with the reasons."""
    incomplete = sort_incomplete(table[table.status != "pruned"])
    seeds = [format_number(seed, 0) for seed in incomplete.seed]
    return incomplete[["setting", "status", "seed", "error", "run"]].assign(seed=seeds)
