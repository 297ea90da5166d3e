"""Read runs from disk into a table: one row per run, and one per planned job that has not started.

Files that this program cannot have written are skipped.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from digitlab.report.statistics import find_varied_settings, most_common, short_name
from digitlab.runs.provenance import flatten, without_loggers
from digitlab.runs.results import is_running, read_results, reported_status
from hydra_plugins.resumable_sweeper.jobs import read_plan, short_lines

# Only these metrics become columns, so that a name in a foreign file cannot replace another column.
METRIC = re.compile(r"(?!baseline/)\w+/[\w/.+@-]+|active_centers")
SAME_SETTINGS = "the same settings"
# The words of a user about a run; a job that has not started has none yet.
LABELS = ("debug", "tags", "note")
# The columns with few different texts, and with whole numbers that a run may lack.
CATEGORIES = ("status", "debug", "setting", "score_name", "data", "versions", "code", "classifier")
WHOLE_NUMBERS = ("seed", "epochs", "repeats", "active_centers")
FIRST_COLUMNS = (
    "run",
    "run_id",
    "status",
    "debug",
    "setting",
    "seed",
    "tags",
    "note",
    "error",
    "other",
    "data",
    "warnings",
    "score_name",
    "score",
    "direction",
    "repeats",
)


def collect(sweeps: Sequence[Path]) -> pd.DataFrame:
    """Read all runs below some directories, and the planned jobs that have not started.

    The settings are in columns `config.<key>`. Each run id appears once per data set: with the run
    that completed last or, if none completed, the last one. `repeats` counts the others.

    Raises:
        ValueError: The directories hold no runs.
    """
    rows = read_rows(sweeps)
    started = {run_id for run_id, _ in rows}
    remove_superseded(rows)
    plans = [path.parent for folder in sweeps for path in sorted(folder.rglob("sweep.json"))]
    overrides: dict[str, str] = {}
    for place in plans:
        lines = short_lines(read_plan(place))
        overrides |= lines
        for run_id in lines.keys() - started:
            seed = re.search(r"(?:^| )seed=(\d+)", lines[run_id])
            new = {
                "run": str(place / run_id),
                "run_id": run_id,
                "status": "not started",
                "error": "",
            }
            rows[run_id, ""] = new | {"seed": int(seed[1]) if seed else None}
    if not rows:
        names = ", ".join(str(folder) for folder in sweeps)
        raise ValueError(f"{names}: holds no run; name a directory of outputs/")
    table = pd.DataFrame(list(rows.values()))
    others = [name for name in table if name not in FIRST_COLUMNS]
    if "trial" in table:
        table["trial"] = table.trial.eq(True)
    table = table.reindex(columns=[*FIRST_COLUMNS, *others])
    labels = table[[*LABELS]].astype(object)
    table[[*LABELS]] = labels.where(labels.notna(), "")
    # The overrides are all that is known about the settings of jobs that have not started.
    table["setting"] = [
        re.sub(r"(^| )seed=\d+", "", overrides.get(run_id, "")).strip() or SAME_SETTINGS
        for run_id in table.run_id
    ]
    return mark_differences(table.assign(setting=describe_settings(table)))


def read_rows(sweeps: Sequence[Path]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the row of each run that counts, by run id and data."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    # A sweep may be named twice, or lie within another one.
    seen = set()
    for folder in sweeps:
        for path in sorted(folder.rglob("results.json")):
            results = read_results(path.parent)
            if results is not None and path.resolve() not in seen:
                seen.add(path.resolve())
                new = make_row(path.parent, results)
                key = new["run_id"], new["data"]
                earlier = rows.get(key, new)
                repeats = earlier.get("repeats", -1) + 1
                rows[key] = max(earlier, new, key=rank_attempt) | {"repeats": repeats}
    return rows


def remove_superseded(rows: dict[tuple[str, str], dict[str, Any]]) -> None:
    """Remove the runs that ended before they read any data, if another one completed."""
    completed = {run_id for (run_id, _), row in rows.items() if rank_attempt(row)[0]}
    for key, row in list(rows.items()):
        ended_early = row["status"] not in ("completed", "debug") and row["data"] == str(None)
        if ended_early and key[0] in completed:
            del rows[key]


def describe_settings(table: pd.DataFrame) -> list[str]:
    """Describe each run by the settings that vary, or as before if none of them is set."""
    settings = find_varied_settings(table)
    descriptions = []
    for _, run in table.iterrows():
        words = [f"{short_name(key)}={run[key]}" for key in settings if pd.notna(run[key])]
        descriptions.append(" ".join(words) or run.setting)
    return descriptions


def rank_attempt(row: dict[str, Any]) -> tuple[bool, float]:
    """Rank runs of the same configuration; the highest one counts."""
    return row["status"] in ("completed", "debug"), row.get("written", 0.0)


def make_row(run: Path, results: dict[str, Any]) -> dict[str, Any]:
    """Flatten a run's results.json."""
    row = {name: value for name, value in results["metrics"].items() if METRIC.fullmatch(name)}
    names = ("run_id", "seed", "error", "epochs", "fit_seconds", "seconds")
    row |= {name: results.get(name) for name in names}
    row |= {"status": reported_status(results), "debug": results.get("debug") or ""}
    row |= {"tags": ",".join(results.get("tags", [])), "note": results.get("note", "")}
    # The error has to fit into one cell of a Markdown table.
    row["error"] = " ".join((row["error"] or "").split()).replace("|", "/")
    if row["status"] == "interrupted" and is_running(run):
        row["status"] = "running"
    if results.get("trial"):
        row["trial"] = True
    row |= {"run": str(run), "warnings": results.get("warnings", [])}
    row |= {"written": (run / "results.json").stat().st_mtime}
    row |= {key: str(results.get(key)) for key in ("data", "versions")}
    row["classifier"] = results.get("classifier")
    code = results.get("code") or {}
    row["code"] = str(code.get("digest", code.get("sha")))
    config = flatten(without_loggers(results["config"]))
    row |= {f"config.{key}": format_value(value) for key, value in config.items()}
    row |= {f"baseline/{name}": value for name, value in results.get("baselines", {}).items()}
    if objective := results["objective"]:
        row |= {"score_name": objective["name"], "direction": objective["direction"]}
        row["score"] = None if row["debug"] else objective.get("value")
    return row


def add_types(table: pd.DataFrame) -> pd.DataFrame:
    """Give the columns of `collect` the types of their values.

    Settings (`config.<key>`) are numbers or booleans again, or categories; lists and texts are
    categories, written as on a command line. `written` is a time (UTC). What a run lacks is
    missing.
    """
    configs = []
    for run in table.run:
        results = read_results(Path(run)) or {}
        configs.append(flatten(results.get("config", {})))
    typed = table.copy()
    for name in table:
        if name.startswith("config."):
            key = name.removeprefix("config.")
            typed[name] = typed_column([config.get(key) for config in configs])
        elif name in WHOLE_NUMBERS:
            values = [None if pd.isna(value) else int(value) for value in table[name]]
            typed[name] = typed_column(values)
        elif name in CATEGORIES:
            typed[name] = table[name].astype("category")
        elif name == "written":
            typed[name] = pd.to_datetime(table[name], unit="s", utc=True)
    return typed


def typed_column(values: Sequence[Any]) -> pd.Series:
    """Make a column of the type that its values have in common; None is a missing value."""
    present = [value for value in values if value is not None]
    kinds = {type(value) for value in present}
    is_complete = len(present) == len(values)
    # A foreign file may hold a number of any size.
    is_small = all(type(value) is not int or abs(value) < 2**63 for value in present)
    if kinds == {bool}:
        return pd.Series(values, dtype="bool" if is_complete else "boolean")
    if kinds == {int} and is_small:
        return pd.Series(values, dtype="int64" if is_complete else "Int64")
    if kinds and kinds <= {int, float} and is_small:
        return pd.Series(values, dtype="float64")
    texts = [None if value is None else format_value(value) for value in values]
    return pd.Series(texts, dtype="category")


def format_value(value: Any) -> str:
    """Format a value as on a command line."""
    if value is None:
        return "null"
    return f"{value:.12g}" if isinstance(value, float) else str(value).replace(" ", "")


def mark_differences(table: pd.DataFrame) -> pd.DataFrame:
    """Name in the column `other` how the origin of each result differs from the last one's."""
    table["other"] = ""
    finished = table[table.status == "completed"]
    if len(finished):
        same_data = finished[finished.data == most_common(finished.data)]
        last = finished.loc[same_data.written.idxmax()]
        for name in ("code", "data", "versions"):
            table.loc[finished.index[finished[name] != last[name]], "other"] += f"{name} "
        # Distances on the features of two classifiers cannot be compared; k-means has none.
        scored = finished[finished.classifier.notna()]
        if len(scored):
            last = scored.loc[scored.written.idxmax()]
            others = scored.index[scored.classifier != last.classifier]
            table.loc[others, "other"] += "classifier "
    return table
