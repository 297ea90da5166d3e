"""The stages of an experiment: read the data, build and fit the model, evaluate and save it."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import seed_everything
from lightning.pytorch.loggers import Logger

from digitlab.config.validation import check_fit
from digitlab.data.images import Split
from digitlab.models import checkpoints
from digitlab.models.base import find_objective, trait
from digitlab.runs.files import write_json
from digitlab.runs.results import Objective
from digitlab.runtime import signals
from digitlab.runtime.threads import cpu_threads
from digitlab.training.evaluation import evaluate_and_save, save_pruned
from digitlab.training.fitting import build_model, fit
from digitlab.training.pruning import was_pruned
from digitlab.training.run_data import read_data
from hydra_plugins.resumable_sweeper import Pruned

log = logging.getLogger(__name__)


def run_stages(
    config: dict[str, Any],
    directory: Path,
    results: dict[str, Any],
    loggers: Sequence[Logger] = (),
) -> None:
    """Run all stages; each adds to `results` at once, so a later failure loses nothing.

    Args:
        config: The configuration as plain values.
        directory: The run's directory.
        results: The content of results.json, updated in place.
        loggers: What else logs the training.

    Raises:
        Pruned: A search gave the run up.
    """
    source, data = read_data(config, expected=results["data"])
    check_fit(config, source.shape, len(source.classes))
    seed_everything(config["seed"], verbose=False)
    model = build_model(config, data)
    # Around all stages: threads on busy cores cost more than they help, and a sum over another
    # number of threads ends in other bits.
    with cpu_threads(trait(model, "threads")):
        results["data"] = {"source": source.name, "digest": source.digest}
        results["objective"] = describe_objective(find_objective(model), data)
        trait(model, "check_data")(data)
        # If the process is killed, this identifies the data of its checkpoints.
        write_json(directory / "results.json", results)
        results["warnings"] += source.warnings
        results["baselines"] = trait(model, "baselines")(data)
        for line in trait(model, "summary")():
            log.info("%s", line)
        signals.safe_point()
        history = fit(model, data, config, directory, results, loggers)
        if was_pruned(directory):
            save_pruned(history, find_objective(model), directory, results)
            raise Pruned(f"in epoch {results['epochs']} of {config['trainer']['max_epochs']}")
        path = directory / "checkpoints" / "best.ckpt"
        best = checkpoints.load_model(path)
        # The same random numbers, whether training ran in this process or before.
        seed_everything(config["seed"], verbose=False)
        trait(best, "complete")(data)
        signals.safe_point()
        checkpoints.save_weights(path, best)
        # Of a search, the test images measure the winner alone.
        shown = data if results.get("tested", True) else data.without_test()
        evaluate_and_save(best, shown, history, directory, results)


def describe_objective(objective: Objective, data: Split) -> dict[str, Any]:
    """The entry `objective` of results.json, before it has a value."""
    name = objective.name if len(data.val.labels) else objective.on("train")
    return {"name": name, "value": None, "direction": objective.direction}
