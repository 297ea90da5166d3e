"""The sentences of a report: counts, the best setting and run, baselines, warnings, effects."""

import math
import re
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from digitlab.formatting import format_loss, format_spread
from digitlab.report.pairs import compare_pairs, describe_pair
from digitlab.report.statistics import (
    REMEDY,
    average_baselines,
    compare_extremes,
    mean_scores,
    select_shared_seeds,
    shared_objective,
    short_name,
    sort_key,
)
from digitlab.report.table import SAME_SETTINGS
from digitlab.runs.results import LOSS, Objective, describe_baseline, is_no_better

RESULT_LEGEND = """Confirmed settings ran again with fresh seeds and have the mean of these runs
alone; candidates were chosen by the score that they are listed with."""
SCORE_LEGEND = """are means over the seeds of a setting, and spread is their standard deviation. p
is the probability that equal settings with these spreads have a best and a worst at least this
clearly apart (Welch's t-test, corrected by a parametric bootstrap)."""
BASELINE_LEGEND = """`{column}` is the {part}
{measure} relative to that baseline."""
TIME_LEGEND = """seconds is the time of a whole run, including evaluation and
figures."""
OTHER_LEGEND = """`other` names the differences from the last run apart from the settings: code,
data or library versions."""


def explain_ranking(ranking: pd.DataFrame, objective: Objective) -> str:
    """Explain the columns of the ranking."""
    scores = f"{objective.measure.capitalize()} and its test value"
    if objective.measure == LOSS.measure:
        scores = "Losses"
    if objective.direction == "max":
        scores = f"Higher is better. {scores}"
    sentences = [f"{scores} {SCORE_LEGEND}"]
    columns = [name for name in ranking if name.startswith("of ")]
    if columns:
        part, _, measure = objective.on("test").partition("/")
        sentences.append(BASELINE_LEGEND.format(column=columns[0], part=part, measure=measure))
    sentences.append(TIME_LEGEND)
    if "result" in ranking:
        sentences.append(RESULT_LEGEND)
    if "other" in ranking:
        sentences.append(OTHER_LEGEND)
    return " ".join(sentences)


def count_jobs(table: pd.DataFrame) -> list[str]:
    """Count the runs and planned jobs by status, and the runs that were repeated."""
    states = ", ".join(f"{n} {name}" for name, n in table.status.value_counts().items())
    lines = [f"{len(table)} job{'s' * (len(table) != 1)}: {states}."]
    if repeats := int(table.repeats.sum()):
        lines.append(
            f"{repeats} repeat{'s' * (repeats != 1)} skipped:"
            " the last completed run of each configuration counts."
        )
    if debug := int((table.status == "debug").sum()):
        lines.append(f"{debug} debug run{'s' * (debug != 1)}: listed, not ranked.")
    return lines


@dataclass(frozen=True)
class Summary:
    """The most important results, one sentence each."""

    verdict: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    """The time, and which runs are not compared."""

    @property
    def lines(self) -> list[str]:
        """All sentences."""
        return self.verdict + self.warnings + self.remarks


def summarize(runs: pd.DataFrame, is_complete: bool) -> Summary:
    """Summarize the most important results.

    Args:
        runs: The runs that are compared.
        is_complete: Whether these are all completed runs.
    """
    verdict = []
    if runs.setting.nunique() > 1:
        verdict += summarize_best_two(runs)
    verdict.append(summarize_best_run(runs))
    group = "completed runs" if is_complete else "runs compared"
    warnings = summarize_baselines(runs, group) + summarize_warnings(runs)
    if others := (runs.other != "").sum():
        warnings.append(
            f"{others} of {len(runs)} {group} used other code or libraries than the last run:"
            " see the column other."
        )
    times = runs.seconds
    time = (
        f"Time: {format_duration(times.sum())} in total,"
        f" {format_duration(runs.fit_seconds.sum())} of it training;"
        f" {format_duration(times.mean())} per run, {format_duration(times.max())} at most."
    )
    return Summary(verdict, warnings, [time])


def summarize_best_two(runs: pd.DataFrame) -> list[str]:
    """Compare the two best settings, by their means and seed by seed."""
    objective = shared_objective(runs)
    means = runs.groupby("setting").score.mean().sort_values(key=objective.cost)
    first, second = means.index[:2]
    both = runs[runs.setting.isin([first, second])]
    measure = "Mean over seeds" if len(both) > 2 else objective.name
    lines = [
        f"{measure}: {format_loss(means[first])} with {first}, then"
        f" {format_loss(means[second])} with {second};"
        f" the difference {describe_difference(both, first)}."
    ]
    if pair := compare_pairs(runs, first, [second]):
        lines.append(describe_pair(pair[0], len(means)))
    return lines


def summarize_best_run(runs: pd.DataFrame) -> str:
    """Describe the best run and its baselines."""
    best, objective = select_best_run(runs), shared_objective(runs)
    remark = " (no images held out)" if objective.name.startswith("train/") else ""
    text = f"Best {objective.name}{remark}: {format_loss(best.score)} with {describe_run(best)}"
    test = objective.on("test")
    if pd.isna(best.get(test)):
        return f"{text}."
    values = average_baselines(best.to_frame().T)
    baselines = ", ".join(f"{name} {format_loss(value)}" for name, value in values.items())
    compared = f" ({baselines})" if baselines else ""
    if test == objective.name:
        return f"{text}{compared}."
    return f"{text}; its {test.replace('/', ' ')} is {format_loss(best[test])}{compared}."


def select_best_run(runs: pd.DataFrame) -> pd.Series:
    """Select the run with the best score; of a search, that of its result."""
    if "is_confirmed" in runs:
        runs = runs[runs.setting == mean_scores(runs).index[0]]
    best: pd.Series = runs.loc[shared_objective(runs).cost(runs.score).idxmin()]
    return best


def summarize_baselines(runs: pd.DataFrame, group: str) -> list[str]:
    """Count the runs that are no better than a baseline; `group` names the runs in the sentence."""
    lines, objective = [], shared_objective(runs)
    values = runs.get(objective.on("test"))
    if "trial" in runs:
        # Trials are not evaluated on the test images.
        values = runs.score if values is None else values.fillna(runs.score)
    for column in runs:
        if column.startswith("baseline/") and values is not None:
            baseline = runs[column]
            no_better = is_no_better(values, baseline, objective)
            is_unbeaten = baseline.notna() & no_better
            if is_unbeaten.any():
                count = f"{is_unbeaten.sum()} of {len(runs)} {group}"
                description = describe_baseline(column.removeprefix("baseline/"))
                lines.append(f"{count} are no better than {description}.")
    return lines


def summarize_warnings(runs: pd.DataFrame) -> list[str]:
    """Quote one of each group of warnings that differ only in their numbers."""
    similar: dict[str, list[str]] = {}
    counted = []
    for column in runs:
        if column.startswith("baseline/"):
            counted.append(f"better than {describe_baseline(column.removeprefix('baseline/'))}: ")
    for warnings in runs.warnings:
        for warning in warnings:
            # `summarize_baselines` already counts these.
            if not any(words in warning for words in counted):
                text = re.sub(r"[\d.,]+(e[+-]\d+)?%?", "#", warning)
                similar.setdefault(text, []).append(warning)
    return [f"Warning in {len(same)} of {len(runs)} runs: {same[0]}" for same in similar.values()]


def describe_difference(both: pd.DataFrame, first: str) -> str:
    """Say whether the two best settings differ significantly over the seeds that they share."""
    has_single_seed = both.groupby("setting").seed.nunique().min() < 2
    fair = both if has_single_seed else select_shared_seeds(both, "setting")
    scope = ""
    if len(fair) < len(both):
        scope = f"over the {fair.seed.nunique()} seeds they share "
    values = fair.groupby("setting").score.agg(["mean", "std", "count"])
    verdict = compare_extremes(values, shared_objective(fair))
    if verdict.best != first and verdict.p_value < 1:
        return f"{scope}is reversed and therefore not significant"
    return f"{scope}is {verdict.words}"


def describe_incomplete(incomplete: pd.DataFrame, key: str) -> list[str]:
    """List the values of a setting at which runs did not complete, in one sentence or none."""
    known = incomplete[incomplete[key].notna()]
    counts = known.groupby([key, "status"]).size()
    if not len(counts):
        return []
    groups = sorted(counts.index, key=lambda group: sort_key(group[0]))
    values = [f"{value} ({counts[value, status]} {status})" for value, status in groups]
    return [f"Not counted, as they did not complete: {', '.join(values)}."]


def describe_run(run: pd.Series) -> str:
    """Describe a run by its settings, if these vary, and its seed."""
    setting = "" if run.setting == SAME_SETTINGS else f"{run.setting}, "
    return f"{setting}seed {run.seed:.0f}"


def summarize_effect(
    lines: dict[str, pd.DataFrame], key: str, objective: Objective
) -> tuple[list[str], pd.DataFrame]:
    """Summarize the effect of one setting in sentences and a table, for each line of the figure."""
    sentences, rows = [], []
    for words, values in lines.items():
        text = describe_effect(values, objective)
        sentence = f"With {words}: {text}" if len(lines) > 1 else text[0].upper() + text[1:]
        sentences.append(sentence)
        for value, line in values.iterrows():
            row: dict[str, Any] = {"with": words} if len(lines) > 1 else {}
            row |= {short_name(key): value, "seeds": int(line["count"])}
            row |= {f"mean {objective.measure}": format_loss(line["mean"])}
            row |= {"spread": format_spread(line["std"])}
            rows.append(row)
    return sentences, pd.DataFrame(rows)


def describe_effect(values: pd.DataFrame, objective: Objective) -> str:
    """Name the best and the worst value of a setting and say whether they differ significantly."""
    means = values["mean"]
    if math.isclose(means.min(), means.max(), rel_tol=1e-9):
        return f"the same at all values ({format_loss(means.min())})."
    verdict = compare_extremes(values, objective)
    best, worst = verdict.best, verdict.worst
    losses = means.map(format_loss)
    text = f"best at {best} ({losses[best]}), worst at {worst} ({losses[worst]})."
    text += f" The difference is {verdict.words}."
    is_edge = len(values) > 2 and best in (values.index[0], values.index[-1])
    if verdict.is_significant and is_edge and is_extensible(best):
        text += f" {best} is at the edge of the values tried."
    if verdict.excluded:
        single = ", ".join(f"{value} ({losses[value]})" for value in verdict.excluded)
        text += f" Not compared, as each has a single seed: {single} {REMEDY}."
    return text


def is_extensible(value: str) -> bool:
    """Whether values beyond this one can be tried: it is a number, but not 0, the usual limit."""
    kind, number, _ = sort_key(value)
    return kind == 0 and number != 0


def format_duration(seconds: float) -> str:
    """Format a duration in a unit of suitable size."""
    if seconds >= 7200:
        return f"{seconds / 3600:.1f} h"
    if seconds >= 120:
        return f"{seconds / 60:.1f} min"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def format_number(value: float, places: int) -> str:
    """Format a number of a table; NaN becomes an empty string."""
    return "" if pd.isna(value) else f"{value:.{places}f}"
