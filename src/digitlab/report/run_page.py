"""Render the page of one run: its verdict, its course, its pictures and its settings.

It is written at the end of a run, so it imports nothing slow: no pandas, no matplotlib.
"""

import logging
import math
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from digitlab.formatting import format_loss
from digitlab.report import charts, rendering
from digitlab.report.charts import Axis, Figure, Point, Series
from digitlab.report.rendering import Cell, Column, Row, Table, make_link, shorten
from digitlab.report.run_files import embed_pictures, list_texts, read_history, read_log_end
from digitlab.runs.files import atomic_write
from digitlab.runs.provenance import flatten
from digitlab.runs.results import Objective, read_results, reported_status

log = logging.getLogger(__name__)

MAX_CHARTS = 8
PAGE = "report.html"


def write_run_page(run: Path) -> None:
    """Write report.html into the directory of a run, if it has results.

    A page that cannot be written, as on a full disk, must not make the run a failure: all that it
    says is in other files.
    """
    try:
        if (page := render_run(run, run)) is not None:
            with atomic_write(run / PAGE) as part:
                part.write_bytes(page)
    except Exception as error:
        log.warning("WARNING: %s was not written: %s", run / PAGE, error)
        log.debug("Traceback:", exc_info=True)


def render_run(run: Path, out: Path) -> bytes | None:
    """Render the page of a run; None without results. Links are relative to the directory `out`."""
    results = read_results(run)
    if results is None:
        return None
    # NaN and infinity are null in results.json.
    metrics, baselines = (
        {name: value for name, value in results.get(part, {}).items() if value is not None}
        for part in ("metrics", "baselines")
    )
    entry = results["objective"] or {}
    objective = Objective(entry["name"], entry["direction"]) if entry else Objective()
    value, test = entry.get("value"), objective.on("test")
    bars = {}
    if test in metrics:
        bars = {"this run": metrics[test]} | {
            name.replace("_", " "): number for name, number in baselines.items()
        }
    model = results.get("model", "run")
    seconds = results.get("seconds") or 0.0
    facts = [f"{results.get('epochs', 0)} epochs", f"{seconds:.1f} s"]
    if results.get("trial"):
        facts.append("trial of a search")
    moment = datetime.fromtimestamp((run / "results.json").stat().st_mtime).astimezone()
    return rendering.render(
        "run.html",
        name=shorten(f"{model}, seed {results['seed']}"),
        folder=run,
        link=make_link(run, out),
        written=moment.strftime("%Y-%m-%d %H:%M"),
        status=reported_status(results),
        facts=facts,
        tags=[shorten(tag, 80) for tag in results.get("tags", [])],
        note=shorten(results.get("note", "")),
        texts=link_texts(run, out),
        warnings=[shorten(warning) for warning in results.get("warnings", [])],
        error=shorten(results.get("error") or ""),
        log=read_log_end(run) if results["status"] != "completed" else [],
        value="" if value is None else format_loss(value),
        metric=objective.name,
        order="higher" if objective.direction == "max" else "lower",
        best_epoch=results.get("best_epoch", 0),
        epochs=results.get("epochs", 0),
        test=test,
        bars=charts.draw_bars(bars) if len(bars) > 1 else "",
        curves=draw_course(run, objective, baselines),
        pictures=embed_pictures(run),
        metrics=list_values("metric", {name: f"{metrics[name]:.6g}" for name in metrics}),
        settings=list_values("setting", flatten(results["config"])),
        origin=list_values("origin", describe_origin(results)),
    )


def link_texts(run: Path, out: Path) -> dict[str, str]:
    """The addresses of the texts of a run by name; relative to the directory `out`."""
    return {name: make_link(run, out) + quote(name) for name in list_texts(run)}


def draw_course(
    run: Path, objective: Objective, baselines: Mapping[str, float]
) -> dict[str, Figure]:
    """Draw each measure of metrics.csv by epoch, with a series for each part of the data."""
    history = read_history(run)
    groups: dict[str, list[str]] = {}
    for name in history:
        if "/" in name:
            groups.setdefault(name.partition("/")[2], []).append(name)
    curves = {}
    for measure, names in list(groups.items())[:MAX_CHARTS]:
        series = []
        for name in names:
            pairs = zip(history["epoch"], history[name], strict=True)
            points = [
                Point(epoch, value, f"{name} {format_loss(value)}, epoch {epoch:g}")
                for epoch, value in pairs
                if math.isfinite(epoch + value)
            ]
            series.append(Series(name, thin(points)))
        if max(len(each.points) for each in series) < 2:
            continue
        is_objective = f"val/{measure}" == objective.name or f"train/{measure}" == objective.name
        references = {}
        if is_objective:
            references = {f"{k.replace('_', ' ')} (test)": v for k, v in baselines.items()}
        svg = charts.draw(series, Axis("epoch", is_log=False), Axis(measure), references)
        curves[shorten(measure, 80)] = Figure(svg, [each.name for each in series])
    return curves


def thin(points: list[Point], most: int = 200) -> list[Point]:
    """At most so many points, at equal distances, with the last one."""
    step = math.ceil(len(points) / most)
    return points if step < 2 else [*points[:-1:step], points[-1]]


def list_values(kind: str, values: Mapping[str, Any]) -> Table:
    """Make a table of names and values."""
    rows = []
    for name, value in values.items():
        cells = [Cell(shorten(str(name)), kind="text"), Cell(shorten(str(value)), kind="text")]
        rows.append(Row("", "", cells))
    return Table([Column("name", kind), Column("value", "value")], rows)


def describe_origin(results: Mapping[str, Any]) -> dict[str, Any]:
    """From which code, data, machine and libraries a run comes."""
    values = {"run id": results["run_id"]}
    for part in ("code", "data", "machine", "versions"):
        for key, value in flatten(results.get(part) or {}).items():
            values[f"{part} {key}"] = value
    return values
