"""Render the report of many runs as report.html; what it says is computed in `findings`."""

import math
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from digitlab import figures
from digitlab.formatting import format_loss, format_spread
from digitlab.report import charts, rendering
from digitlab.report.charts import Axis, Figure, Point, Series
from digitlab.report.curves import MAX_CURVES, Curve, Tradeoff, find_tradeoffs, learning_curves
from digitlab.report.findings import Effect, Part, Report
from digitlab.report.pairs import compare_pairs, correct_p_values, format_p
from digitlab.report.rendering import Cell, Column, Row, Table, make_link, shorten
from digitlab.report.run_files import embed_pictures, read_log_end, to_number
from digitlab.report.run_page import link_texts, render_run
from digitlab.report.run_rows import make_runs_table
from digitlab.report.search import Search
from digitlab.report.sentences import describe_run
from digitlab.report.statistics import (
    SIGNIFICANCE_LEVEL,
    average_baselines,
    mean_scores,
    short_name,
)
from digitlab.runs.results import Objective

# Jobs of which the page shows the end of the log, and settings that it compares with the best one.
MAX_LOGS = 20
MAX_PAIRS = 20
MAX_POINTS = 1000
LOGGED = ("failed", "diverged", "interrupted")


def render_report(report: Report, out: Path) -> bytes:
    """Render a report as HTML, as the page of a run if there is only one.

    Links are relative to the directory `out`.
    """
    if len(report.table) == 1 and (page := render_run(Path(report.table.run.iloc[0]), out)):
        return page
    failures = report.failures[report.failures.status.isin(LOGGED)]
    columns, rows = make_runs_table(report, out)
    is_alone = len(report.parts) == 1
    return rendering.render(
        "report.html",
        name=name_folders(report.folders),
        folders=report.folders,
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        statuses=report.table.status.value_counts().to_dict(),
        choice=report.choice,
        counts=[*report.counts, *report.notes],
        parts=[describe_part(part, out, is_alone) for part in report.parts],
        columns=columns,
        rows=rows,
        failures=[describe_failure(job, out) for _, job in failures.head(MAX_LOGS).iterrows()],
        more_failures=max(0, len(failures) - MAX_LOGS),
    )


def name_folders(folders: list[Path]) -> str:
    """A title: the last parts of the directories' names."""
    names = []
    for folder in folders:
        path = folder.resolve()
        names.append(f"{path.parent.name}/{path.name}" if path.parent.name else path.name)
    return shorten(", ".join(names), 120)


def describe_failure(job: pd.Series, out: Path) -> dict[str, Any]:
    """What the page says about a job that did not complete."""
    run = Path(job.run)
    texts = {name: shorten(job[name]) for name in ("setting", "status", "seed", "error", "run")}
    return texts | {"link": make_link(run, out), "log": read_log_end(run)}


def describe_part(part: Part, out: Path, is_alone: bool) -> dict[str, Any]:
    """What the page says about the runs of one objective."""
    objective, runs = part.objective, part.runs
    means = mean_scores(runs)
    interactions = [effect.find_interaction(objective) for effect in part.effects]
    curves = learning_curves(runs)
    note = "Mean over the seeds of a setting; the band is one standard deviation."
    if len(means) > MAX_CURVES:
        note += f" The best {MAX_CURVES} of {len(means)} settings."
    return describe_verdict(part, runs[runs.setting == means.index[0]]) | {
        "title": part.title,
        "suffix": "" if is_alone else f": {objective.name}",
        "warnings": part.summary.warnings,
        "sentences": part.summary.verdict + part.summary.remarks,
        "ranking": make_table(part.ranking),
        "explanation": part.explanation,
        "pairs": make_pairs(part, list(means.index)),
        "sizes": draw_sizes(part.effects),
        "interactions": list(filter(None, interactions)),
        "effects": [describe_effect(effect, objective) for effect in part.effects],
        "curves": {name: draw_curves(own, name) for name, own in curves.items()},
        "curves_note": note,
        "tradeoffs": dict(map(draw_tradeoff, find_tradeoffs(runs))),
        "best": describe_best(part.best, out),
        "search": describe_search(part.search) if part.search else None,
    }


def describe_search(search: Search) -> dict[str, Any]:
    """What the page says about the trials of a search."""
    return {
        "course": {f"by {panel.label}": draw_panel(panel, search) for panel in search.course},
        "importance": charts.draw_bars(search.importance) if search.importance else "",
        "note": search.importance_note,
        "chart_note": search.chart_note,
        "slices": {panel.label: draw_panel(panel, search) for panel in search.slices},
    }


def draw_panel(panel: figures.Panel, search: Search) -> Figure:
    """Draw the score of trials against one quantity."""
    series = []
    for points in panel.series:
        triples = zip(points.x, points.y, points.texts, strict=True)
        drawn = [Point(x, y, shorten(text, 300)) for x, y, text in triples]
        series.append(Series(points.name, drawn, has_line=points.has_line))
    axis = Axis(panel.label, panel.ticks, panel.is_log)
    svg = charts.draw(series, axis, Axis(search.objective.name), search.references)
    return Figure(svg, [each.name for each in series])


def describe_verdict(part: Part, best: pd.DataFrame) -> dict[str, Any]:
    """What the page says first: the best setting, whose runs are `best`, and trivial rivals."""
    objective, values, bars = part.objective, best.iloc[0], {}
    test = objective.on("test")
    if test in best and best[test].notna().any():
        bars = {"best setting": float(best[test].mean())} | average_baselines(best)
    # Settings may also vary only in the runs that are not compared.
    varied = [key for key in part.settings if part.runs[key].nunique(dropna=False) > 1]
    chips = [f"{short_name(key)}={values[key]}" for key in varied if pd.notna(values[key])]
    seeds, title = len(best), "Best setting"
    if part.search:
        title = "Result of the search" if best.is_confirmed.all() else "Best candidate"
    return {
        "best_title": title,
        "metric": objective.name,
        "order": "higher" if objective.direction == "max" else "lower",
        "value": format_loss(best.score.mean()),
        "spread": format_spread(best.score.std()),
        "seeds": f"over {seeds} seeds" if seeds > 1 else f"seed {values.seed:.0f} alone",
        "chips": [shorten(chip) for chip in chips],
        "test": test,
        "bars": charts.draw_bars(bars) if len(bars) > 1 else "",
    }


def describe_best(best: pd.Series, out: Path) -> dict[str, Any]:
    """What the page says about the best run."""
    return {
        "description": describe_run(best),
        "run": best.run,
        "link": make_link(Path(best.run), out),
        "texts": link_texts(Path(best.run), out),
        "pictures": embed_pictures(Path(best.run)),
    }


def make_table(table: pd.DataFrame) -> Table:
    """Make a table sortable: a column that holds numbers alone is sorted by them."""
    columns, cells = [], []
    for name in table:
        texts = [str(value) for value in table[name]]
        numbers = [to_number(text.rstrip("x")) for text in texts]
        known = [number for number in numbers if not math.isnan(number)]
        has_numbers = bool(known) and len(known) == sum(map(bool, texts))
        columns.append(Column(name, name, has_numbers))
        kind = "number" if has_numbers else "text"
        own = []
        for text, number in zip(texts, numbers, strict=True):
            own.append(Cell(shorten(text), number if has_numbers and text else None, "", kind))
        cells.append(own)
    return Table(columns, [Row("", "", list(row)) for row in zip(*cells, strict=True)])


def make_pairs(part: Part, ranked: list[str]) -> Table:
    """Compare the first settings with the best one, seed by seed."""
    pairs = compare_pairs(part.runs, ranked[0], ranked[1 : MAX_PAIRS + 1])
    p_values = correct_p_values([pair.p_value for pair in pairs])
    columns = [
        Column("setting", "setting"),
        Column("seeds", "shared seeds", True),
        Column("wins", "best is better with", True),
        Column("difference", f"best is better by ({part.objective.measure})", True),
        Column("p", "p", True),
        Column("verdict", "at 5 %"),
    ]
    rows = []
    for pair, p_value in zip(pairs, p_values, strict=True):
        number = partial(Cell, kind="number")
        is_clear = p_value <= SIGNIFICANCE_LEVEL
        sign = "" if pair.difference <= 0 else "−"
        cells = [
            Cell(shorten(pair.setting), kind="text"),
            number(str(pair.seeds), pair.seeds),
            number(str(pair.wins), pair.wins),
            number(sign + format_spread(abs(pair.difference)), -pair.difference),
            number(format_p(p_value).removeprefix("= "), p_value),
            Cell("different" if is_clear else "may be chance", kind="text"),
        ]
        rows.append(Row("", "", cells))
    return Table(columns, rows)


def describe_effect(effect: Effect, objective: Objective) -> dict[str, Any]:
    """What the page says about the effect of one setting."""
    return {
        "name": effect.name,
        "conditions": effect.conditions,
        "sentences": effect.sentences,
        "means": make_table(effect.values),
        "chart": draw_effect(effect, objective),
    }


def draw_sizes(effects: list[Effect]) -> Markup:
    """Draw how much each setting changes the objective, if there are several; largest first."""
    ordered = sorted(effects, key=lambda effect: -effect.size)
    if len(ordered) < 2:
        return Markup("")
    return charts.draw_bars({effect.name: effect.size for effect in ordered})


def draw_effect(effect: Effect, objective: Objective) -> Figure:
    """Draw the means at the values of a setting, a series for each choice of the others."""
    places, scale = figures.tick_positions(effect.ticks)
    # Between two choices there is nothing for a line to show.
    has_choices = any(name[:1].isalpha() or name[:1] == "[" for name in effect.ticks)
    series = []
    for words, means in effect.drawn.items():
        points = []
        for value, row in means.iterrows():
            setting = " ".join([f"{effect.name}={value}", words]).strip()
            text = f"{setting}: {describe_mean(row['mean'], row['std'], int(row['count']))}"
            spread = 0.0 if pd.isna(row["std"]) else row["std"]
            points.append(Point(places[value], row["mean"], shorten(text), spread))
        series.append(Series(words, points, has_line=not has_choices))
    axis = Axis(effect.name, {name: places[name] for name in effect.ticks}, scale == "log")
    references = {f"{name} (test)": value for name, value in effect.baselines.items()}
    svg = charts.draw(series, axis, Axis(objective.name, is_log=False), references)
    return Figure(svg, [shorten(each.name) for each in series])


def describe_mean(mean: float, spread: float, seeds: int) -> str:
    """A mean over seeds in words."""
    if seeds < 2:
        return f"{format_loss(mean)} (one seed)"
    return f"{format_loss(mean)} ± {format_spread(spread)} ({seeds} seeds)"


def draw_curves(curves: list[Curve], metric: str) -> Figure:
    """Draw a metric by epoch, a series for each setting."""
    series = []
    for curve in curves:
        triples = list(zip(curve.epochs, curve.means, curve.spreads, strict=True))
        points = []
        for epoch, mean, spread in triples:
            text = f"{curve.setting}, epoch {epoch:g}: {describe_mean(mean, spread, curve.seeds)}"
            points.append(Point(epoch, mean, shorten(text)))
        band = [(epoch, mean - spread, mean + spread) for epoch, mean, spread in triples]
        series.append(Series(curve.setting, points, band if curve.seeds > 1 else ()))
    svg = charts.draw(series, Axis("epoch", is_log=False), Axis(metric))
    return Figure(svg, [shorten(each.name) for each in series])


def draw_tradeoff(tradeoff: Tradeoff) -> tuple[str, Figure]:
    """Draw two metrics against each other; returns a title as well."""
    x_name = "seconds of training" if tradeoff.x is None else tradeoff.x.name
    y_name = tradeoff.y.name
    points = tradeoff.points.sort_values("x").head(MAX_POINTS)
    series: Mapping[str, list[Point]] = {"not beaten": [], "beaten by another setting": []}
    for row in points.itertuples():
        x_text = f"{row.x:.1f} s" if tradeoff.x is None else f"{x_name} {format_loss(row.x)}"
        seeds = f"{row.seeds} seed{'s' * (row.seeds != 1)}"
        text = f"{row.setting}: {y_name} {format_loss(row.y)}, {x_text} ({seeds})"
        name = "not beaten" if row.is_front else "beaten by another setting"
        series[name].append(Point(row.x, row.y, shorten(text, 300), is_marked=row.is_front))
    drawn = []
    for name, own in series.items():
        if own:
            is_front = name == "not beaten"
            drawn.append(Series(name, own, has_line=is_front, is_faint=not is_front))
    svg = charts.draw(drawn, Axis(x_name), Axis(y_name))
    return f"{y_name} against {x_name}", Figure(svg, [each.name for each in drawn])
