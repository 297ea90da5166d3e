"""The table of runs in report.html: a row per run, and one per planned job that has not started."""

from pathlib import Path
from typing import Any

import pandas as pd

from digitlab.formatting import format_loss, format_spread
from digitlab.report.findings import Report
from digitlab.report.rendering import Cell, Column, Row, make_link, shorten
from digitlab.report.sentences import format_number
from digitlab.report.statistics import find_varied_settings, short_name, sort_key

# More settings than these share one column.
MAX_SETTINGS = 12
NOTHING = Cell("")
# Decimal places.
PLACES = {"seed": 0, "seconds": 1}


def make_runs_table(report: Report, out: Path) -> tuple[list[Column], list[Row]]:
    """Make the table of all runs, best first; its links are relative to the directory `out`."""
    table = report.table
    keys = find_varied_settings(table)
    if len(keys) > MAX_SETTINGS:
        keys = []
    spreads, costs = [], []
    for part in report.parts:
        spreads.append(part.runs.groupby("setting").score.transform("std"))
        costs.append(part.objective.cost(part.runs.score))
        if part.search:
            costs.append(part.objective.cost(part.search.selected.score))
    if spreads:
        # Runs that are not compared come last.
        table = table.assign(spread=pd.concat(spreads), cost=pd.concat(costs)).sort_values("cost")
        results = find_results(report)
        table = table.loc[sorted(table.index, key=lambda index: index not in results)]
    columns = name_columns(report, keys)
    rows = []
    for record in table.to_dict("records"):
        cells = [make_cell(column, record, columns, out) for column in columns]
        words = shorten(record["setting"]) + seed_word(record) + tag_words(record)
        rows.append(Row(record["status"], words, cells))
    return columns, rows


def find_results(report: Report) -> set[Any]:
    """The indices of the runs that confirm what a search found."""
    parts = [part for part in report.parts if part.search]
    return {index for part in parts for index in part.runs.index[part.runs.is_confirmed]}


def name_columns(report: Report, keys: list[str]) -> list[Column]:
    """Name the columns of the table."""
    table = report.table
    settings = [Column("setting", "setting")]
    if keys:
        settings = []
    for key in keys:
        has_numbers = all(is_number(value) for value in table[key].dropna().unique())
        settings.append(Column(short_name(key), short_name(key), has_numbers, key))
    objectives = [part.objective for part in report.parts]
    is_single = len(objectives) == 1
    label = objectives[0].name if is_single else "objective"
    others = []
    if is_single and (test := objectives[0].on("test")) in table and test != label:
        others.append(Column("test", test, True, test))
        for name in table:
            if name.startswith("baseline/") and table[name].gt(0).any():
                words = name.removeprefix("baseline/").replace("_", " ")
                others.append(Column(f"of-{words}", f"of {words}", True, name))
    labels = {name: [Column(name, name)] for name in ("tags", "note") if (table[name] != "").any()}
    return [
        Column("status", "status"),
        Column("objective", label, True, "score"),
        Column("spread", "spread", True, "spread"),
        *settings,
        Column("seed", "seed", True, "seed"),
        *labels.get("tags", []),
        *others,
        Column("seconds", "seconds", True, "seconds"),
        Column("run", "run"),
        *labels.get("note", []),
        Column("remark", "remark"),
    ]


def is_number(value: str) -> bool:
    """Whether a value of a setting is a number."""
    return sort_key(value)[0] == 0


def make_cell(column: Column, record: dict[str, Any], columns: list[Column], out: Path) -> Cell:
    """Make the cell of a run in a column of the table."""
    if column.key == "status":
        return Cell(record["status"], kind="status")
    if column.key == "run":
        return Cell(Path(record["run"]).name, link=make_link(Path(record["run"]), out))
    if column.key == "remark":
        return make_remark(record)
    if column.key in ("tags", "note"):
        return Cell(shorten(record[column.key]), kind="text")
    if column.key == "setting":
        return Cell(shorten(record["setting"]), kind="text")
    value = record.get(column.source)
    if value is None or pd.isna(value):
        return NOTHING
    if column.source.startswith("config."):
        number = float(value) if column.is_number else None
        return Cell(shorten(value, 80), number, "", "number" if column.is_number else "")
    if column.source.startswith("baseline/"):
        (test,) = (record[each.source] for each in columns if each.key == "test")
        # A baseline of zero has no multiples.
        value = test / value if value > 0 else float("nan")
        text = format_number(value, 2) + "x"
    elif column.key in PLACES:
        text = format_number(value, PLACES[column.key])
    else:
        text = format_spread(value) if column.key == "spread" else format_loss(value)
    return NOTHING if pd.isna(value) else Cell(text, float(value), "", "number")


def make_remark(record: dict[str, Any]) -> Cell:
    """Make the cell of the error, or of the origin and the warnings."""
    notes = [record["error"]] if record["error"] else []
    if record["status"] == "not started":
        # It has no settings yet, but overrides.
        notes.append(record["setting"])
    if record["other"].strip():
        notes.append(f"other {record['other'].strip()}")
    if record.get("trial"):
        notes.append("trial")
    warnings = record["warnings"]
    notes += warnings if isinstance(warnings, list) else []
    return Cell(shorten(" · ".join(notes), 300), kind="note")


def seed_word(record: dict[str, Any]) -> str:
    """The seed as a filter finds it."""
    return "" if pd.isna(record["seed"]) else f" seed={record['seed']:.0f}"


def tag_words(record: dict[str, Any]) -> str:
    """The tags as a filter finds them."""
    return shorten("".join(f" tag={tag}" for tag in record["tags"].split(",") if tag))
