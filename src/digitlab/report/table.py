"""Runs on disk as a table: a row a run, and one for a job of a sweep that never began. What others wrote is no row."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from digitlab.report.statistics import bare, commonest, varied
from digitlab.runs.provenance import flatten
from digitlab.runs.results import is_running, read_results, selection_score
from hydra_plugins.resumable_sweeper.jobs import read_plan, short_lines

METRIC = re.compile(
    r"(train|val|test|generated)/\w+|active_centers"
)  # no name of a stranger's stands for a column
SAME = "the same settings"


def collect(sweeps: Sequence[Path]) -> pd.DataFrame:
    """A row a run, its settings in columns `config.<key>`; planned jobs that never began as well.

    Each run id once a data set: of several runs the one completed last, or where none is, the last; `repeats` counts
    the others.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}  # by configuration and data
    seen = set()  # one sweep may be named twice, or lie within another
    for folder in sweeps:
        for path in sorted(folder.rglob("results.json")):
            results = read_results(path.parent)
            if results is not None and path.resolve() not in seen:
                seen.add(path.resolve())
                new = row(path.parent, results)
                key = new["run_id"], new["data"]
                earlier = rows.get(key, new)
                rows[key] = max(earlier, new, key=standing) | {
                    "repeats": earlier.get("repeats", -1) + 1
                }
    begun = {run_id for run_id, _ in rows}
    done = {run_id for (run_id, _), one in rows.items() if one["status"] == "completed"}
    in_vain = [
        key
        for key, one in rows.items()
        if key[0] in done and one["status"] != "completed" and one["data"] == str(None)
    ]
    for key in in_vain:
        del rows[key]
    plans = [path.parent for folder in sweeps for path in sorted(folder.rglob("sweep.json"))]
    planned = {}
    for place in plans:
        for name, lines in short_lines(read_plan(place)).items():
            planned[name] = place, lines
    for run_id, (place, lines) in planned.items():
        if run_id not in begun:
            seed = re.search(r"(?:^| )seed=(\d+)", lines)
            unborn = {
                "run": str(place / run_id),
                "run_id": run_id,
                "status": "not begun",
                "error": "",
            }
            rows[run_id, ""] = unborn | {"seed": int(seed[1]) if seed else None}
    if not rows:
        raise ValueError(
            f"{', '.join(str(folder) for folder in sweeps)}: holds no run; name a directory of outputs/"
        )
    first = (
        "run",
        "run_id",
        "status",
        "setting",
        "seed",
        "error",
        "other",
        "data",
        "warnings",
        "score_name",
        "score",
        "repeats",
    )
    table = pd.DataFrame(list(rows.values()))
    table = table.reindex(columns=[*first, *(name for name in table if name not in first)])
    told = {
        run_id: re.sub(r"(^| )seed=\d+", "", lines).strip()
        for run_id, (_, lines) in planned.items()
    }
    table["setting"] = [
        told.get(run_id) or SAME for run_id in table.run_id
    ]  # of jobs that never began all we know
    return mark(table.assign(setting=in_words(table)))


def in_words(table: pd.DataFrame) -> list[str]:
    """The setting of each run, by what differs among these runs; where nothing does, as it was told before."""
    settings = varied(table)
    words = [
        " ".join(f"{bare(key)}={one[key]}" for key in settings if pd.notna(one[key]))
        for _, one in table.iterrows()
    ]
    return [word or before for word, before in zip(words, table.setting, strict=True)]


def standing(row: dict[str, Any]) -> tuple[bool, float]:
    """What makes one of two runs of the same configuration count."""
    return row["status"] == "completed", row.get("written", 0.0)


def row(run: Path, results: dict[str, Any]) -> dict[str, Any]:
    """What a run's results.json tells, flat."""
    told = {name: value for name, value in results["metrics"].items() if METRIC.fullmatch(name)}
    told |= {
        key: results.get(key)
        for key in ("run_id", "status", "seed", "error", "epochs", "fit_seconds", "seconds")
    }
    told["error"] = " ".join((told["error"] or "").split()).replace("|", "/")  # one cell of a table
    if told["status"] == "interrupted" and is_running(run):
        told["status"] = "running"
    told |= {"run": str(run), "warnings": results.get("warnings", [])}
    told |= {"written": (run / "results.json").stat().st_mtime}
    told |= {key: str(results.get(key)) for key in ("data", "versions")}
    told["classifier"] = results.get("classifier")
    code = results.get("code") or {}
    told["code"] = str(code.get("digest", code.get("sha")))
    told |= {f"config.{key}": show(value) for key, value in flatten(results["config"]).items()}
    told |= {f"baseline/{name}": value for name, value in results.get("baselines", {}).items()}
    if results["status"] == "completed":
        told["score_name"], told["score"] = selection_score(results["metrics"])
    return told


def show(value: Any) -> str:
    """A value as a command line writes it."""
    return (
        "null"
        if value is None
        else f"{value:.12g}"
        if isinstance(value, float)
        else str(value).replace(" ", "")
    )


def mark(table: pd.DataFrame) -> pd.DataFrame:
    """Name in the column `other` what each result was not made by or of, that the last one was."""
    table["other"] = ""
    finished = table[table.status == "completed"]
    if len(finished):
        last = finished.loc[finished[finished.data == commonest(finished.data)].written.idxmax()]
        for name in ("code", "data", "versions"):
            table.loc[finished.index[finished[name] != last[name]], "other"] += f"{name} "
        # Distances on the features of two classifiers do not compare; k-means has none.
        scored = finished[finished.classifier.notna()]
        if len(scored):
            last = scored.loc[scored.written.idxmax()]
            others = scored.index[scored.classifier != last.classifier]
            table.loc[others, "other"] += "classifier "
    return table
