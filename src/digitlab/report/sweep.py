"""The report at the end of a sweep: the table, and which results earlier commands left."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from digitlab.data.origin import describe_differences
from digitlab.report.page import write_report
from digitlab.runs.results import read_results
from hydra_plugins.resumable_sweeper.jobs import read_plan


def report_on_command(sweep_dir: Path, requested: Mapping[Path, dict[str, Any]]) -> str:
    """Write a sweep's report.

    Args:
        sweep_dir: The directory of the sweep.
        requested: The plain configurations of the jobs that the command requested, by directory.

    Returns:
        What to print: the table, how many of its runs the last command did not request, and how
        many results that it reused come from other code or other data.
    """
    try:
        lines = [write_report([sweep_dir], sweep_dir / "report")]
    except ValueError as error:
        # No job has left a result.
        return str(error)
    others = {path.parent for path in sweep_dir.glob("*/results.json")} - requested.keys()
    if others:
        lines.append(f"Runs of earlier commands among these: {len(others)}")
    start = max(job.requested for job in read_plan(sweep_dir).values())
    if number := count_reused_from_elsewhere(requested, start):
        lines.append(
            f"WARNING: {number} of these results come from other code or other data (see above);"
            "\n  force=true replaces them, hydra.sweep.dir=... keeps both."
        )
    return "\n".join(lines)


def count_reused_from_elsewhere(requested: Mapping[Path, dict[str, Any]], start: float) -> int:
    """How many results, made before `start`, new runs would make from other code or data."""
    number = 0
    for job, config in requested.items():
        results = read_results(job)
        if results and results["status"] == "completed" and is_older(job / "results.json", start):
            number += bool(describe_differences(results, config))
    return number


def is_older(path: Path, moment: float) -> bool:
    """Whether a file exists and was written before a moment."""
    return path.is_file() and path.stat().st_mtime < moment
