"""Report many runs on one page: the best one, the effect of each setting, and failures."""

import re
import shutil
import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from digitlab import figures
from digitlab.report.findings import list_failures, rank, sort_incomplete
from digitlab.report.sentences import (
    count_jobs,
    describe_incomplete,
    describe_run,
    explain_ranking,
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
from digitlab.runs.files import LARGEST_JSON, atomic_write

# Limits of the tables in the terminal; report.md has all rows and all text.
MAX_ROWS = 20
MAX_WIDTH = 80  # characters of a setting or an error
# More lines in one figure could not be distinguished.
MAX_LINES = 12
BEST_RUN_FIGURES = ("centers", "confusion_matrix", "reconstructions", "generated", "latents")
# The course of training and the layers, which do not show what the model can do.
OTHER_FIGURES = ("loss", "shapes")
MAX_FIGURES = 20


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
