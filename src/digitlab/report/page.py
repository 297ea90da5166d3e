"""Report many runs on one page: the best one, the effect of each setting, and failures."""

import re
import shutil
import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from digitlab import figures
from digitlab.report import html
from digitlab.report.by_metric import Criterion
from digitlab.report.findings import Effect, Part, Report, find
from digitlab.report.run_files import find_pictures
from digitlab.report.search import Search
from digitlab.report.sentences import describe_run
from digitlab.report.terminal import find_width, fit_table, wrap
from digitlab.runs.files import LARGEST_JSON, atomic_write
from digitlab.runs.results import Objective

# Limits of the tables in the terminal; the report has all rows and all text.
MAX_ROWS = 20
MAX_WIDTH = 80  # characters of a setting or an error


def write_report(sweeps: Sequence[Path], out: Path, criterion: Criterion | None = None) -> str:
    """Write report.md, report.html, runs.csv and their figures into a directory.

    Args:
        sweeps: Directories that contain runs.
        out: Directory of the report.
        criterion: The metric to rank by, if it is not the objective.

    Returns:
        A summary for the terminal.

    Raises:
        ValueError: The directories hold no runs.
    """
    report = find(sweeps, criterion)
    # A foreign results.json may hold characters that UTF-8 lacks: they become question marks.
    page = write_markdown(report, out)
    earlier = find_figures(out / "report.md")
    with atomic_write(out / "report.md") as file:
        file.write_bytes(page.encode(errors="replace"))
    # Figures of an earlier report in the same place would be misleading.
    for name in earlier - find_figures(out / "report.md"):
        (out / name).unlink(missing_ok=True)
    with atomic_write(out / "runs.csv") as file:
        columns = ["warnings", "config.data.root"]
        report.table.drop(columns=columns, errors="ignore").to_csv(
            file, index=False, errors="replace"
        )
    with atomic_write(out / "report.html") as file:
        file.write_bytes(html.render_report(report, out))
    text = "\n".join([*print_report(report), f"Report: {out / 'report.html'}"])
    return text.encode(errors="replace").decode()


def write_markdown(report: Report, out: Path) -> str:
    """Draw the figures of a report into `out` and return the text of report.md."""
    listed = []
    if len(report.failures):
        listed = ["## Not completed", "", format_markdown(report.failures), ""]
    page = [f"# {', '.join(str(folder) for folder in report.folders)}", ""]
    has_rivals = len(report.parts) > 1
    if has_rivals:
        page += [*format_list([*report.counts, *report.choice]), *listed]
        for part in report.parts:
            page += [f"# {part.title}", "", *format_list(part.summary.lines)]
            page += write_part(part, out, listed=[], has_rivals=True)
    else:
        summaries = [part.summary.lines for part in report.parts] or [report.notes]
        page += format_list([*report.counts, *report.choice, *summaries[0]])
        for part in report.parts:
            page += write_part(part, out, listed, has_rivals=False)
        if not report.parts:
            page += listed
    page += ["Every run, with all its settings and metrics: [runs.csv](runs.csv).", ""]
    return "\n".join(page)


def write_part(part: Part, out: Path, listed: list[str], has_rivals: bool) -> list[str]:
    """Return the ranking, the list of failures and the sections on the runs of one objective.

    Args:
        part: What the report says about these runs.
        out: Directory of the report, for the figures.
        listed: The list of the jobs that have not completed.
        has_rivals: Whether the report has runs of other objectives, with figures of their own.
    """
    objective = part.objective
    prefix = f"{objective.direction}_{objective.measure}_" if has_rivals else ""
    rows = ["## Settings, best first", "", format_markdown(part.ranking), ""]
    rows += [part.explanation, "", *listed]
    if part.search:
        rows += write_search(part.search, out, prefix)
    for effect in part.effects:
        rows += write_effect(effect, objective, out, prefix)
    return rows + write_best_run(part.best, out, prefix)


def print_report(report: Report) -> list[str]:
    """Return the lines of a report, as wide as the terminal if they are printed on one."""
    width = find_width()
    failures = format_failures(report.failures, width)
    if len(report.parts) == 1:
        (part,) = report.parts
        lines = [*report.counts, *report.choice, *part.summary.lines]
        return [*format_ranking(part, width), *failures, "", *wrap(lines, width)]
    notes = [*report.counts, *report.choice, *report.notes]
    printed = [*failures, "", *wrap(notes, width)]
    for part in report.parts:
        printed += ["", f"{part.title}:", *format_ranking(part, width), ""]
        printed += wrap(part.summary.lines, width)
    return printed


def format_list(lines: Sequence[str]) -> list[str]:
    """Format sentences as a list in Markdown."""
    return [*(f"- {line}" for line in lines), ""]


def format_ranking(part: Part, width: int | None) -> list[str]:
    """Format the first settings of the ranking for the terminal.

    A narrow one first loses all baselines but one, then the time, the origin, the test metric, the
    spread, the last baseline and the number of seeds. The settings and the objective stay.
    """
    lines, ranking = [], part.ranking
    if len(ranking):
        baselines = [name for name in ranking if name.startswith("of ")]
        droppable = [*reversed(baselines[1:]), "seconds", "other", part.objective.on("test")]
        droppable += ["spread", *baselines[:1], "seeds"]
        if part.objective.name in droppable:
            droppable.remove(part.objective.name)
        lines += ["", *fit_table(ranking.head(MAX_ROWS), width, droppable)]
    if len(ranking) > MAX_ROWS:
        lines.append(f"... and {len(ranking) - MAX_ROWS} more")
    return lines


def format_failures(failures: pd.DataFrame, width: int | None) -> list[str]:
    """Format the first jobs that have not completed for the terminal, shortened."""
    if not len(failures):
        return []
    shorten = partial(textwrap.shorten, width=MAX_WIDTH, placeholder=" ...")
    shortened = failures.assign(
        setting=[shorten(words) for words in failures.setting],
        error=[shorten(error) for error in failures.error],
        run=[Path(run).name for run in failures.run],
    )
    return ["", "Not completed:", *fit_table(shortened.head(MAX_ROWS), width, ["run"])]


def format_markdown(table: pd.DataFrame) -> str:
    """Format a table of strings in Markdown."""
    text: str = table.to_markdown(index=False, disable_numparse=True)
    return text


def write_effect(effect: Effect, objective: Objective, out: Path, prefix: str) -> list[str]:
    """Draw the effect of one setting into `out` and return its section of the page."""
    # A key in a foreign results.json may look like a path.
    name = "effect_" + re.sub(r"[^\w.+-]", "-", prefix + effect.name) + ".png"
    with atomic_write(out / name) as part:
        figure = figures.effect(
            effect.drawn,
            effect.ticks,
            effect.name,
            objective.name,
            effect.baselines,
            objective.direction,
        )
        figure.savefig(part, dpi=110)
    page = [f"## Effect of {effect.name}", ""]
    for sentence in effect.conditions:
        page += [sentence, ""]
    page += [*(f"- {sentence}" for sentence in effect.sentences), ""]
    return [*page, format_markdown(effect.values), "", f"![{effect.name}]({name})", ""]


def write_search(search: Search, out: Path, prefix: str) -> list[str]:
    """Draw the course of a search into `out` and return its section of the page."""
    page = ["## The search", ""]
    for kind, drawn in {"course": search.course, "slices": search.slices}.items():
        name = "search_" + re.sub(r"[^\w.+-]", "-", prefix + kind) + ".png"
        with atomic_write(out / name) as part:
            figure = figures.panels(drawn, search.objective.name, search.references)
            figure.savefig(part, dpi=110)
        page += [f"![{kind}]({name})", ""]
    page += [search.chart_note, ""]
    if search.importance:
        shares = {key: f"{share:.2f}" for key, share in search.importance.items()}
        table = pd.DataFrame({"setting": [*shares], "importance": [*shares.values()]})
        page += [format_markdown(table), ""]
    return [*page, search.importance_note, ""]


def find_figures(page: Path) -> set[str]:
    """Return the names of the figures that an existing report shows."""
    if not page.is_file() or page.stat().st_size > LARGEST_JSON:
        return set()
    text = page.read_text(errors="replace")
    return set(re.findall(r"\]\(((?:effect|best|search)_[\w.+-]+\.png)\)", text))


def write_best_run(best: pd.Series, out: Path, prefix: str) -> list[str]:
    """Copy the figures of the best run into `out` and return its section of the page."""
    page = ["## The best run", "", f"{describe_run(best)}: `{best.run}`", ""]
    for name, source in find_pictures(Path(best.run)).items():
        copy = "best_" + re.sub(r"[^\w.+-]", "-", prefix + name) + ".png"
        with atomic_write(out / copy) as part:
            shutil.copyfile(source, part)
        page += [f"![{name}]({copy})", ""]
    return page
