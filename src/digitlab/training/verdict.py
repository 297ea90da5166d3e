"""The end of a run, in words: whether it beats the baselines, its warnings, then the numbers."""

import logging
from pathlib import Path
from typing import Any

from digitlab.formatting import format_loss
from digitlab.runs.results import Objective, describe_baseline, is_no_better, selection_score
from digitlab.training.evaluation import in_words, warn_if_no_better

log = logging.getLogger(__name__)


def log_results(results: dict[str, Any], directory: Path) -> None:
    """Log a completed run: how it compares with the baselines, warnings, then the numbers."""
    metrics, baselines = results["metrics"], results["baselines"]
    objective = selection_score(results)[0]
    compared = objective.on("test") if results.get("tested", True) else objective.name
    no_better = warn_if_no_better(metrics, baselines, objective, compared)
    for warning in no_better:
        log.warning("WARNING: %s", warning)
    if not no_better and (verdict := describe_comparison(metrics, baselines, objective, compared)):
        log.info("%s", verdict)
    for warning in results["warnings"]:
        if warning not in no_better:
            log.warning("WARNING: %s", warning)
    log.info(
        "%s, epochs: %d, steps: %d, in %.1f s of training (data: %s)",
        results["model"],
        results["epochs"],
        results["steps"],
        results["fit_seconds"],
        results["data"]["source"],
    )
    rivals = []
    for name, value in baselines.items():
        rivals.append(f"{name.replace('_', ' ')} {format_loss(value)}")
    for name, value in metrics.items():
        comparison = f"  ({', '.join(rivals)})" if rivals and name == compared else ""
        log.info("  %-27s %-8.4g%s", name, value, comparison)
    log.info("Results and figures: %s", directory)


def describe_comparison(
    metrics: dict[str, float], baselines: dict[str, float], objective: Objective, compared: str
) -> str:
    """Say which baselines the metric `compared` beats, the first among them; nothing without."""
    value = metrics.get(compared)
    if value is None or not baselines:
        return ""
    beaten, unbeaten = list[str](), list[str]()
    for name, rival in baselines.items():
        group = unbeaten if is_no_better(value, rival, objective) else beaten
        group.append(f"{describe_baseline(name)} ({format_loss(rival)})")
    words = f"Better than {' and '.join(beaten)}"
    if unbeaten:
        words += f", but not than {' or '.join(unbeaten)}"
    return f"{words}: {in_words(compared)} {format_loss(value)}."
