"""What a report finds out about runs: computed once, for report.md and for report.html."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd

from digitlab.formatting import format_loss, format_spread
from digitlab.report.by_metric import Criterion, rescore
from digitlab.report.search import Search, find_search
from digitlab.report.sentences import (
    Summary,
    count_jobs,
    describe_incomplete,
    explain_ranking,
    format_number,
    select_best_run,
    summarize,
    summarize_effect,
)
from digitlab.report.statistics import (
    average_baselines,
    compare,
    find_varied_settings,
    select_comparable,
    shared_objective,
    short_name,
    sort_key,
    split_by_objective,
)
from digitlab.report.table import collect, describe_settings
from digitlab.runs.results import Objective

# More lines in one figure could not be distinguished.
MAX_LINES = 12
# More cases make no readable sentence.
MAX_CASES = 6


@dataclass(frozen=True)
class Effect:
    """What one setting changes, the others fixed."""

    key: str
    # By the other settings: mean, spread and number of seeds at each value.
    lines: dict[str, pd.DataFrame]
    baselines: dict[str, float]
    # Sentences before and after the figure's remark on the lines that it does not show.
    conditions: list[str]
    sentences: list[str]
    values: pd.DataFrame

    @property
    def name(self) -> str:
        """The setting as on a command line."""
        return short_name(self.key)

    @property
    def size(self) -> float:
        """How far apart the means at its best and worst values lie, as mean over the lines."""
        gaps = [table["mean"].max() - table["mean"].min() for table in self.lines.values()]
        return float(sum(gaps) / len(gaps))

    def find_interaction(self, objective: Objective) -> str:
        """Say at which values it is best if that depends on the other settings, else nothing."""
        best = {
            words: objective.cost(table["mean"]).idxmin() for words, table in self.lines.items()
        }
        if len({*best.values()}) < 2:
            return ""
        cases = [f"{value} with {words}" for words, value in list(best.items())[:MAX_CASES]]
        more = f" and {len(best) - MAX_CASES} more" if len(best) > MAX_CASES else ""
        return f"The best {self.name} depends on the other settings: {', '.join(cases)}{more}."

    @property
    def drawn(self) -> dict[str, pd.DataFrame]:
        """The lines that a figure has room for."""
        return dict(list(self.lines.items())[:MAX_LINES])

    @property
    def ticks(self) -> list[str]:
        """All values of the setting, in order."""
        values = {value for means in self.lines.values() for value in means.index}
        return sorted(values, key=sort_key)


@dataclass(frozen=True)
class Part:
    """What a report says about the runs of one objective."""

    title: str
    objective: Objective
    summary: Summary
    # The runs that are compared, and the settings that vary.
    runs: pd.DataFrame
    settings: list[str]
    # A row per setting, best first, as text, and what its columns mean.
    ranking: pd.DataFrame
    explanation: str
    effects: list[Effect]
    # The search that made some of the runs, if one did.
    search: Search | None

    @property
    def best(self) -> pd.Series:
        """The run with the best score."""
        return select_best_run(self.runs)


@dataclass(frozen=True)
class Report:
    """What a report says about all runs below some directories."""

    folders: list[Path]
    table: pd.DataFrame
    # Sentences on all jobs, and on a choice of the metric after the fact.
    counts: list[str]
    choice: list[str]
    # The jobs that have not completed, with the reasons.
    failures: pd.DataFrame
    parts: list[Part]
    # Why no runs can be compared, if none can.
    notes: list[str]


def find(folders: Sequence[Path], criterion: Criterion | None = None) -> Report:
    """Read the runs below some directories and compare them.

    Args:
        folders: Directories that contain runs.
        criterion: The metric to rank by, if it is not the objective.

    Raises:
        ValueError: The directories hold no runs, or none that has the metric.
    """
    table = collect(folders)
    counts, choice, notes = count_jobs(table), list[str](), list[str]()
    if criterion is not None:
        table, choice = rescore(table, criterion)
    parts = []
    for runs in split_by_objective(table[table.debug == ""]):
        compared, remarks = select_comparable(runs)
        if len(compared):
            parts.append(find_part(runs, compared, remarks))
        else:
            notes += remarks
    return Report(list(folders), table, counts, choice, list_failures(table), parts, notes)


def find_part(table: pd.DataFrame, compared: pd.DataFrame, notes: list[str]) -> Part:
    """Compare the runs of one objective.

    Args:
        table: The runs, and the planned jobs that have not started.
        compared: Those whose scores can be compared.
        notes: Why others cannot.
    """
    settings = find_varied_settings(table)
    runs = all_runs = compared.assign(setting=describe_settings(compared))
    if search := find_search(table, runs):
        runs = search.runs
    objective, ranking = shared_objective(runs), rank(runs, settings)
    title = f"By {objective.name}, {'highest' if objective.direction == 'max' else 'lowest'} first"
    is_complete = len(all_runs) == (table.status == "completed").sum()
    summary = summarize(all_runs, is_complete)
    if search is not None:
        summary = replace(summary, verdict=search.verdict)
    summary.remarks.extend(notes)
    effects = find_effects(runs, settings, sort_incomplete(table))
    if search is not None:
        # Hardly two of its numbers met the same other settings; the slices show all of them.
        effects = [effect for effect in effects if effect.key not in search.numbers]
    explanation = explain_ranking(ranking, objective)
    return Part(title, objective, summary, runs, settings, ranking, explanation, effects, search)


def find_effects(runs: pd.DataFrame, settings: list[str], incomplete: pd.DataFrame) -> list[Effect]:
    """Compare the values of each setting for which two runs differ in it alone."""
    effects, objective = [], shared_objective(runs)
    for key in settings:
        lines, used, fixed, tuned = compare(runs, key, settings)
        if not lines:
            continue
        # Only runs with the same fixed settings could have been compared.
        fixed_keys = [
            name for name in settings if f"{short_name(name)}={used[name].iloc[0]}" in fixed.split()
        ]
        has_fixed = (incomplete[fixed_keys] == used[fixed_keys].iloc[0]).all(axis=1)
        sentences, values = summarize_effect(lines, key, objective)
        sentences += describe_incomplete(incomplete[has_fixed], key)
        conditions = []
        if tuned:
            names = ", ".join(map(short_name, tuned))
            conditions.append(f"Each value with the best {names} tried with it.")
        if fixed:
            conditions.append(f"All with {fixed}.")
        if len(lines) > MAX_LINES:
            conditions.append(f"The figure shows the first {MAX_LINES} of {len(lines)} lines.")
        baselines = average_baselines(used)
        effects.append(Effect(key, lines, baselines, conditions, sentences, values))
    return effects


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
        if "is_confirmed" in group:
            row["result"] = "confirmed" if group.is_confirmed.all() else "candidate"
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
    if "result" in ranking:
        is_candidate = ranking.result != "confirmed"
        ranking = ranking.loc[is_candidate.sort_values(kind="stable").index]
    formats = {"spread": format_spread, "seconds": partial(format_number, places=1)}
    for name in ranking.select_dtypes("float"):
        ranking[name] = ranking[name].map(formats.get(name, format_loss), na_action="ignore")
    return ranking.replace("", pd.NA).dropna(axis="columns", how="all").fillna("")


def sort_incomplete(table: pd.DataFrame) -> pd.DataFrame:
    """Select the runs and jobs that have not completed, sorted by setting and seed."""
    return table[table.status != "completed"].sort_values(["setting", "seed"])


def list_failures(table: pd.DataFrame) -> pd.DataFrame:
    """List the runs and jobs that have not completed and were not pruned, with the reasons."""
    incomplete = sort_incomplete(table[~table.status.isin(("pruned", "debug"))])
    seeds = [format_number(seed, 0) for seed in incomplete.seed]
    return incomplete[["setting", "status", "seed", "error", "run"]].assign(seed=seeds)
