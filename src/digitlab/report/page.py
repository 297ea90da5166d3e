"""Report many runs on one page: the best one, the effect of each setting, and failures."""

import math
import re
import shutil
import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from digitlab import figures
from digitlab.formatting import format_loss, format_spread
from digitlab.report.statistics import (
    REMEDY,
    average_baselines,
    compare,
    compare_extremes,
    find_varied_settings,
    select_comparable,
    select_shared_seeds,
    shared_objective,
    short_name,
    sort_key,
    split_by_objective,
)
from digitlab.report.table import SAME_SETTINGS, collect, describe_settings
from digitlab.runs.files import LARGEST_JSON, atomic_write
from digitlab.runs.results import LOSS, Objective, describe_baseline, is_no_better

# Limits of the tables in the terminal; report.md has all rows and all text.
MAX_ROWS = 20
MAX_WIDTH = 80  # characters of a setting or an error
# More lines in one figure could not be distinguished.
MAX_LINES = 12
BEST_RUN_FIGURES = ("centers", "confusion_matrix", "reconstructions", "generated", "latents")
# The course of training and the layers, which do not show what the model can do.
OTHER_FIGURES = ("loss", "shapes")
MAX_FIGURES = 20
SCORE_LEGEND = """are means over the seeds of a setting, and spread is their standard deviation. p
is the probability that equal settings with these spreads have a best and a worst at least this
clearly apart (Welch's t-test, corrected by a parametric bootstrap)."""
BASELINE_LEGEND = """`{column}` is the {part}
{measure} relative to that baseline."""
TIME_LEGEND = """seconds is the time of a whole run, including evaluation and
figures."""
OTHER_LEGEND = """`other` names the differences from the last run apart from the settings: code,
data or library versions."""


def write_report(sweeps: Sequence[Path], out: Path) -> str:
    """Write report.md, runs.csv and their figures into a directory.

    Args:
        sweeps: Directories that contain runs.
        out: Directory of the report.

    Returns:
        A summary for the terminal.

    Raises:
        ValueError: The directories hold no runs.
    """
    table = collect(sweeps)
    lines, failures = count_jobs(table), list_failures(table)
    tables = split_by_objective(table)
    parts = [report_on(runs, out, has_rivals=len(tables) > 1) for runs in tables]

    listed = []
    if len(failures):
        listed = ["## Not completed", "", format_markdown(failures), ""]
    page = [f"# {', '.join(str(folder) for folder in sweeps)}", ""]
    if len(parts) == 1:
        (part,) = parts
        lines += part.summary
        page += [*format_list(lines), *part.table, *listed, *part.sections]
        printed = [*format_ranking(part.ranking), *format_failures(failures), "", *lines]
    else:
        page += [*format_list(lines), *listed]
        printed = [*format_failures(failures), "", *lines]
        for part in parts:
            page += [f"# {part.title}", "", *format_list(part.summary), *part.table, *part.sections]
            printed += ["", f"{part.title}:", *format_ranking(part.ranking), "", *part.summary]
    page += ["Every run, with all its settings and metrics: [runs.csv](runs.csv).", ""]
    earlier = find_figures(out / "report.md")
    with atomic_write(out / "report.md") as file:
        file.write_text("\n".join(page))
    # Figures of an earlier report in the same place would be misleading.
    for name in earlier - find_figures(out / "report.md"):
        (out / name).unlink(missing_ok=True)
    with atomic_write(out / "runs.csv") as file:
        columns = ["warnings", "config.data.root"]
        table.drop(columns=columns, errors="ignore").to_csv(file, index=False)
    return "\n".join([*printed, f"Report: {out / 'report.md'}"])


class Part(NamedTuple):
    """What a report says about the runs of one objective."""

    title: str
    summary: list[str]
    ranking: pd.DataFrame
    # Lines of the page: the ranking, and then the sections on the settings and on the best run.
    table: list[str]
    sections: list[str]


def report_on(table: pd.DataFrame, out: Path, has_rivals: bool) -> Part:
    """Report on the runs of one objective, and draw their figures into `out`.

    Args:
        table: The runs, and the planned jobs that have not started.
        out: Directory of the report.
        has_rivals: Whether the report has runs of other objectives, with figures of their own.
    """
    settings = find_varied_settings(table)
    runs, notes = select_comparable(table)
    runs = runs.assign(setting=describe_settings(runs))
    if not len(runs):
        return Part("", notes, pd.DataFrame(), [], [])
    objective, ranking = shared_objective(runs), rank(runs, settings)
    title = f"By {objective.name}, {'highest' if objective.direction == 'max' else 'lowest'} first"
    prefix = f"{objective.direction}_{objective.measure}_" if has_rivals else ""
    incomplete = sort_incomplete(table)
    sections = []
    for key in settings:
        sections += write_effect(key, settings, runs, incomplete, out, prefix)
    sections += write_best_run(runs, out, prefix)
    rows = ["## Settings, best first", "", format_markdown(ranking), ""]
    rows += [explain_ranking(ranking, objective), ""]
    is_complete = len(runs) == (table.status == "completed").sum()
    return Part(title, summarize(runs, is_complete) + notes, ranking, rows, sections)


def format_list(lines: Sequence[str]) -> list[str]:
    """Format sentences as a list in Markdown."""
    return [*(f"- {line}" for line in lines), ""]


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
    if "other" in ranking:
        sentences.append(OTHER_LEGEND)
    return " ".join(sentences)


def sort_incomplete(table: pd.DataFrame) -> pd.DataFrame:
    """Select the runs and jobs that have not completed, sorted by setting and seed."""
    return table[table.status != "completed"].sort_values(["setting", "seed"])


def list_failures(table: pd.DataFrame) -> pd.DataFrame:
    """List the runs and jobs that have not completed and were not pruned, with the reasons."""
    incomplete = sort_incomplete(table[table.status != "pruned"])
    seeds = [format_number(seed, 0) for seed in incomplete.seed]
    return incomplete[["setting", "status", "seed", "error", "run"]].assign(seed=seeds)


def format_ranking(ranking: pd.DataFrame) -> list[str]:
    """Format the first settings of the ranking for the terminal."""
    lines = []
    if len(ranking):
        lines += ["", ranking.head(MAX_ROWS).to_string(index=False)]
    if len(ranking) > MAX_ROWS:
        lines.append(f"... and {len(ranking) - MAX_ROWS} more")
    return lines


def format_failures(failures: pd.DataFrame) -> list[str]:
    """Format the first jobs that have not completed for the terminal, shortened."""
    if not len(failures):
        return []
    shorten = partial(textwrap.shorten, width=MAX_WIDTH, placeholder=" ...")
    shortened = failures.assign(
        setting=[shorten(words) for words in failures.setting],
        error=[shorten(error) for error in failures.error],
        run=[Path(run).name for run in failures.run],
    )
    return ["", "Not completed:", shortened.head(MAX_ROWS).to_string(index=False)]


def format_markdown(table: pd.DataFrame) -> str:
    """Format a table of strings in Markdown."""
    text: str = table.to_markdown(index=False, disable_numparse=True)
    return text


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


def count_jobs(table: pd.DataFrame) -> list[str]:
    """Count the runs and planned jobs by status, and the runs that were repeated."""
    states = ", ".join(f"{n} {name}" for name, n in table.status.value_counts().items())
    lines = [f"{len(table)} job{'s' * (len(table) != 1)}: {states}."]
    if repeats := int(table.repeats.sum()):
        lines.append(
            f"{repeats} repeat{'s' * (repeats != 1)} skipped:"
            " the last completed run of each configuration counts."
        )
    return lines


def summarize(runs: pd.DataFrame, is_complete: bool) -> list[str]:
    """Summarize the most important results, one sentence each.

    Args:
        runs: The runs that are compared.
        is_complete: Whether these are all completed runs.
    """
    lines = []
    if runs.setting.nunique() > 1:
        lines.append(summarize_best_two(runs))
    lines.append(summarize_best_run(runs))
    group = "completed runs" if is_complete else "runs compared"
    lines += summarize_baselines(runs, group)
    lines += summarize_warnings(runs)
    if others := (runs.other != "").sum():
        lines.append(
            f"{others} of {len(runs)} {group} used other code or libraries than the last run:"
            " see the column other."
        )
    times = runs.seconds
    lines.append(
        f"Time: {format_duration(times.sum())} in total,"
        f" {format_duration(runs.fit_seconds.sum())} of it training;"
        f" {format_duration(times.mean())} per run, {format_duration(times.max())} at most."
    )
    return lines


def summarize_best_two(runs: pd.DataFrame) -> str:
    """Compare the two best settings."""
    objective = shared_objective(runs)
    means = runs.groupby("setting").score.mean().sort_values(key=objective.cost)
    first, second = means.index[:2]
    both = runs[runs.setting.isin([first, second])]
    measure = "Mean over seeds" if len(both) > 2 else objective.name
    return (
        f"{measure}: {format_loss(means[first])} with {first}, then"
        f" {format_loss(means[second])} with {second};"
        f" the difference {describe_difference(both, first)}."
    )


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
    return f"{text}; its {test.replace('/', ' ')} is {format_loss(best[test])}{compared}."


def select_best_run(runs: pd.DataFrame) -> pd.Series:
    """Select the run with the best score."""
    best: pd.Series = runs.loc[shared_objective(runs).cost(runs.score).idxmin()]
    return best


def summarize_baselines(runs: pd.DataFrame, group: str) -> list[str]:
    """Count the runs that are no better than a baseline; `group` names the runs in the sentence."""
    lines, objective = [], shared_objective(runs)
    for column in runs:
        if column.startswith("baseline/") and objective.on("test") in runs:
            baseline = runs[column]
            no_better = is_no_better(runs[objective.on("test")], baseline, objective)
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


def write_effect(
    key: str,
    settings: list[str],
    runs: pd.DataFrame,
    incomplete: pd.DataFrame,
    out: Path,
    prefix: str,
) -> list[str]:
    """Draw the effect of one setting into `out` and return its section of the page.

    The section is empty if no two runs differ only in this setting.
    """
    lines, used, fixed, tuned = compare(runs, key, settings)
    if not lines:
        return []
    # Only runs with the same fixed settings could have been compared.
    fixed_keys = [
        name for name in settings if f"{short_name(name)}={used[name].iloc[0]}" in fixed.split()
    ]
    has_fixed = (incomplete[fixed_keys] == used[fixed_keys].iloc[0]).all(axis=1)
    # A key in a foreign results.json may look like a path.
    name = "effect_" + re.sub(r"[^\w.+-]", "-", prefix + short_name(key)) + ".png"
    objective = shared_objective(runs)
    sentences, values = summarize_effect(lines, key, objective)
    sentences += describe_incomplete(incomplete[has_fixed], key)
    ticks = sorted({value for means in lines.values() for value in means.index}, key=sort_key)
    drawn = dict(list(lines.items())[:MAX_LINES])
    baselines, direction = average_baselines(used), objective.direction
    with atomic_write(out / name) as part:
        figure = figures.effect(drawn, ticks, short_name(key), objective.name, baselines, direction)
        figure.savefig(part, dpi=110)
    page = [f"## Effect of {short_name(key)}", ""]
    if tuned:
        page += [f"Each value with the best {', '.join(map(short_name, tuned))} tried with it.", ""]
    if fixed:
        page += [f"All with {fixed}.", ""]
    if len(lines) > MAX_LINES:
        page += [f"The figure shows the first {MAX_LINES} of {len(lines)} lines.", ""]
    page += [*(f"- {sentence}" for sentence in sentences), ""]
    return [*page, format_markdown(values), "", f"![{short_name(key)}]({name})", ""]


def find_figures(page: Path) -> set[str]:
    """Return the names of the figures that an existing report shows."""
    if not page.is_file() or page.stat().st_size > LARGEST_JSON:
        return set()
    text = page.read_text(errors="replace")
    return set(re.findall(r"\]\(((?:effect|best)_[\w.+-]+\.png)\)", text))


def describe_run(run: pd.Series) -> str:
    """Describe a run by its settings, if these vary, and its seed."""
    setting = "" if run.setting == SAME_SETTINGS else f"{run.setting}, "
    return f"{setting}seed {run.seed:.0f}"


def write_best_run(runs: pd.DataFrame, out: Path, prefix: str) -> list[str]:
    """Copy the figures of the best run into `out` and return its section of the page."""
    best = select_best_run(runs)
    page = ["## The best run", "", f"{describe_run(best)}: `{best.run}`", ""]
    run = Path(best.run)
    for name in list_figures(run):
        source = run / "figures" / f"{name}.png"
        # A link in a foreign run may name any file.
        if source.is_file() and source.resolve().is_relative_to(run.resolve()):
            copy = "best_" + re.sub(r"[^\w.+-]", "-", prefix + name) + ".png"
            with atomic_write(out / copy) as part:
                shutil.copyfile(source, part)
            page += [f"![{name}]({copy})", ""]
    return page


def list_figures(run: Path) -> list[str]:
    """List the figures of a run that a report shows: those that we know, then a model's own."""
    # A name in a foreign run may contain anything.
    names = [path.stem for path in sorted(run.glob("figures/*.png"))]
    own = [name for name in names if re.fullmatch(r"[\w.+-]+", name)]
    own = [name for name in own if name not in (*BEST_RUN_FIGURES, *OTHER_FIGURES)]
    return [*BEST_RUN_FIGURES, *own[:MAX_FIGURES]]


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
