"""What Hydra calls in digitlab: the task, the checks before it, and the hooks of the sweeper.

Imports torch only when a run starts, so that --help, a dry run and a mistake answer at once.
"""

import gc
import hashlib
import json
import logging
import os
import platform
import re
import sys
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, read_write

from digitlab import Busy, RunFailed
from digitlab.config import schema, validation
from digitlab.config.errors import format_error
from digitlab.data.origin import describe_origin
from digitlab.report import progress
from digitlab.runs.files import SWEEP_FILES, check_links
from digitlab.runs.provenance import DATA_PLACE, make_run_id
from digitlab.runs.restore import resumed
from digitlab.runs.results import (
    check_same_run,
    find_conflict,
    read_results,
    run_state,
    selection_score,
)
from digitlab.runtime import launchers, signals
from digitlab.runtime.command import command_name
from hydra_plugins.resumable_sweeper.jobs import FINISHED, read_plan
from hydra_plugins.resumable_sweeper.sweeper import ACTIONS

log = logging.getLogger(__name__)

# Keys that do not name a sweep.
UNNAMED = ("seed", "plugins", *validation.LABELS, "force", "dry_run", *DATA_PLACE)
# The jobs that the command requests, by directory.
requested: dict[Path, DictConfig] = {}
# The shape (C, H, W) and the number of classes of the data that was read to check jobs.
known_data: dict[str, tuple[tuple[int, int, int], int]] = {}


# -- the task ----------------------------------------------------------------------------------


def run_job(cfg: DictConfig) -> float:
    """Run one job in the directory that Hydra made for it.

    Returns:
        The model's objective as results.json has it: for the models here val/loss, or train/loss
        without held-out images. If its direction is max, the value is not negated: a sweeper that
        searches has to maximise it.

    Raises:
        RunFailed: The run failed and has said why.
    """
    # On a full disk the run reports the error once; the handler of train.log would do so each line.
    logging.raiseExceptions = False
    settings = HydraConfig.get()
    directory = Path(settings.runtime.output_dir)
    if cfg.dry_run:
        raise ValueError("dry_run=true: only hydra/sweeper=digitlab lists its jobs; leave it out")
    if settings.mode == RunMode.MULTIRUN:
        return run_sweep_job(cfg, directory, settings)
    try:
        return run_alone(cfg, directory)
    except KeyboardInterrupt as stop:
        if stop.args:
            # The run had started.
            print(f"Continue with: {command_name()} resume={directory}", file=sys.stderr)
        raise


def run_alone(cfg: DictConfig, directory: Path) -> float:
    """Run one experiment that belongs to no sweep, and write its page. Raises as `run`."""
    from digitlab.report.run_page import write_run_page

    results = directory / "results.json"
    before = results.stat().st_mtime_ns if results.is_file() else 0
    try:
        return run(cfg, directory)
    finally:
        # A run that is skipped or refused leaves its directory as it is.
        if results.is_file() and results.stat().st_mtime_ns != before:
            write_run_page(directory)


def run_sweep_job(cfg: DictConfig, directory: Path, settings: HydraConf) -> float:
    """Run one job of a sweep, and show where it stands in the sweep."""
    from digitlab.report import live_table

    launcher = settings.runtime.choices.get("hydra/launcher")
    if launcher == "submitit_local":
        # It starts all jobs of a sweep at once on this machine.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    sweep_dir, name = Path(settings.sweep.dir), settings.sweep.subdir
    plan = read_plan(sweep_dir)
    since = plan[name].since if name in plan else 0.0
    if describe_origin(directory, cfg.data.get("root")):
        # Other code or data made it, so no part of a forced sweep is done.
        since = 0.0
    # Jobs in other processes write lines, which a table would lose.
    is_alone = launcher == "basic" and cfg.trainer.devices == 1 and name in plan
    if is_alone and live_table.is_possible():
        with live_table.show_table(sweep_dir, name):
            return run_planned(cfg, directory, settings, since)
    return run_planned(cfg, directory, settings, since)


def run_planned(cfg: DictConfig, directory: Path, settings: HydraConf, since: float) -> float:
    """Run one job of a sweep, and log how far the sweep is before it and after it."""
    from digitlab.report.live import show_on_page

    launcher = settings.runtime.choices.get("hydra/launcher")
    sweep_dir, name = Path(settings.sweep.dir), settings.sweep.subdir
    opening = progress.opening(sweep_dir, name)
    log.info(opening)
    if launcher in ("joblib", "ray"):
        launchers.prefix_console_logs(opening.partition(":")[0])
    try:
        with show_on_page(sweep_dir, name):
            objective = run(cfg, directory, since)
    except Busy:
        # The sweeper waits for the other process.
        return float("nan")
    except Exception as error:
        if not isinstance(error, RunFailed):
            message = format_error(error, settings.overrides.task)
            log.error("Failed on %s: %s", platform.node(), message)
            log.debug("Traceback:", exc_info=True)
        log.info(progress.standing(sweep_dir, name))
        raise
    log.info(progress.standing(sweep_dir, name))
    return objective


def run(cfg: DictConfig, directory: Path, since: float = 0.0) -> float:
    """Run an experiment. Raises RunFailed after printing why."""
    import_training()
    from digitlab.training.experiment import run_experiment

    if cfg.resume is not None:
        cfg = resumed(cfg, HydraConfig.get().overrides.task)
    try:
        # Relative paths are those of the command, wherever this worker was started.
        with chdir(HydraConfig.get().runtime.cwd):
            validation.check(cfg)
            return run_experiment(cfg, directory, since)
    except OSError as error:
        log.error("Failed: %s", format_error(error, []))
        raise RunFailed(str(error)) from error
    except Busy:
        log.warning("Skipped: another process works on %s", directory)
        raise


def import_training() -> None:
    """Import torch and what trains, which takes seconds.

    Signals are deferred until the imports finish: an interrupted import raises unrelated errors.
    """
    if "digitlab.training.experiment" in sys.modules:
        return
    with signals.deferred():
        # Garbage collection takes a fifth of the time of these imports and frees nothing.
        gc.disable()
        try:
            import digitlab.training.experiment  # noqa: F401

            gc.freeze()
        finally:
            gc.enable()


# -- before a run or a sweep -------------------------------------------------------------------


class Checks(Callback):
    """Checks before Hydra writes anything. SystemExit is all that Hydra lets a callback raise."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Check a single run, and turn `resume` towards its directory."""
        try:
            prepare_run(config)
        except Exception as error:
            raise SystemExit(error) from error

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Check that the launcher's workers can start."""
        try:
            if not config.dry_run:
                launchers.check_threads(config.hydra.launcher)
        except Exception as error:
            raise SystemExit(error) from error


def prepare_run(config: DictConfig) -> None:
    """Check a run and its directory, and import what it needs; a dry run ends here.

    Raises:
        ValueError: A value or the directory does not fit.
        Busy: Another process works on the run.
    """
    if config.resume is not None:
        places = [word for word in config.hydra.overrides.hydra if "hydra.run.dir" in word]
        cfg = resumed(config, [*config.hydra.overrides.task, *places])
        with read_write(config.hydra):
            config.hydra.run.dir = config.resume
            # `.hydra` of the resumed run stays as it is.
            config.hydra.output_subdir = None
    else:
        cfg = config
    validation.check(cfg)
    directory, run_id = Path(config.hydra.run.dir), make_run_id(validation.to_plain(cfg))
    if config.dry_run:
        print(describe_run(config, directory, run_id))
        raise SystemExit(0)
    check_links(directory)
    check_same_run(directory, run_id)
    if run_state(directory) == "running":
        print(f"Skipped: another process works on {directory}", file=sys.stderr)
        raise Busy(str(directory))
    # Imported now: an interruption during the imports leaves no directory without a run.
    import_training()
    check_data(cfg, directory)


def check_data(cfg: DictConfig, directory: Path) -> None:
    """Load the data of a new run before anything is written, and check that the model fits it.

    MNIST is not loaded: its shape is known, and a run falls back to other sources.

    Raises:
        ValueError: The data is missing or damaged, or the model does not fit it.
    """
    if schema.data_name(cfg.data) == schema.MNIST.name or run_state(directory) != "new":
        return
    import_training()
    from digitlab.data.datasets import load_data

    config = validation.to_plain(cfg)
    key = json.dumps(config["data"], sort_keys=True)
    if key not in known_data:
        source = load_data(config["data"])
        known_data[key] = source.shape, len(source.classes)
    validation.check_fit(config, *known_data[key])


def describe_run(config: DictConfig, directory: Path, run_id: str) -> str:
    """What a dry run prints of a single run."""
    state = "foreign" if find_conflict(directory, run_id) else run_state(directory)
    if state == "completed" and is_untested(directory):
        state = "untested"
    action = ACTIONS.get(state, "run again")
    remark = ""
    if state in FINISHED:
        remark = describe_origin(directory, config.data.get("root"))
        action = "run again" if config.force else action
    place = str(directory)
    if not directory.exists() and not any("hydra.run.dir=" in word for word in sys.argv):
        place = f"a new folder of {directory.parent}"
    suffix = f"  ({remark})" if remark else ""
    return f"{run_id}  {action}  {state}{suffix}\n1 job in {place}: 1 to {action}"


# -- hooks of the sweepers, named in conf/hydra/sweeper/ ----------------------------------------


def check_job(cfg: DictConfig) -> None:
    """Check a job of a sweep before the first one starts.

    Raises:
        ValueError: A value or the job's directory does not fit.
    """
    if cfg.resume is not None:
        raise ValueError(f"resume={cfg.resume}: continues one run; leave out --multirun")
    if cfg.force and "n_trials" in cfg.hydra.sweeper:
        raise ValueError(
            "force=true: a search continues; to start over, choose another hydra.sweep.dir"
        )
    validation.check(cfg)
    launchers.check_launcher(cfg.hydra.launcher, cfg.trainer.devices)
    sweep_dir = Path(cfg.hydra.sweep.dir)
    directory = sweep_dir / cfg.hydra.sweep.subdir
    requested[directory] = cfg
    if directory.exists() and not cfg.dry_run:
        check_links(directory)
        check_same_run(directory, make_run_id(validation.to_plain(cfg)))
    check_links(sweep_dir, SWEEP_FILES)
    if not cfg.dry_run:
        check_data(cfg, directory)


def job_state(directory: Path, name: str) -> str:
    """The state of a job, after a colon with what tells a completed one from a new one."""
    cfg = requested.get(directory)
    state = run_state(directory)
    if cfg is None or state == "new":
        return state
    if find_conflict(directory, make_run_id(validation.to_plain(cfg))):
        return "foreign"
    if state == "completed" and "n_trials" not in cfg.hydra.sweeper and is_untested(directory):
        return "untested"
    if state == "completed" and (remark := describe_origin(directory, cfg.data.get("root"))):
        return f"completed: {remark}"
    return state


def is_untested(directory: Path) -> bool:
    """Whether a run is a trial of a search that was not evaluated on the test images."""
    return not (read_results(directory) or {}).get("tested", True)


def job_value(directory: Path) -> float | None:
    """The objective of a completed job; None for another one."""
    results = read_results(directory)
    if results is None or results["status"] != "completed":
        return None
    return selection_score(results)[1]


def report_sweep(directory: Path) -> str:
    """Write the report of a sweep; returns what to print."""
    from digitlab.report.sweep import report_on_command

    return report_on_command(
        directory, {job: validation.to_plain(cfg) for job, cfg in requested.items()}
    )


# -- the configuration -------------------------------------------------------------------------


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """The checked configuration of a command line for one run."""
    with initialize_config_dir(str(schema.CONF), version_base="1.3"):
        cfg = compose("config", list(overrides))
    validation.check(cfg)
    return cfg


def sweep_name(overrides: ListConfig) -> str:
    """The name of a sweep: its grid's, or its fixed and swept keys.

    More values of a swept key therefore extend the same sweep. A grid of debug runs has a name of
    its own, so that they do not lie among the results.
    """
    names, grid, suffix = [], "", ""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    for override in parsed:
        key = override.key_or_group
        if key in UNNAMED or key.partition(".")[0] == "logger":
            continue
        if override.is_sweep_override():
            names.append(key)
        elif key == "sweep" and override.value():
            grid = override.get_value_element_as_str()
        else:
            names.append(f"{key}-{override.get_value_element_as_str()}")
        if key == "debug" and (override.is_sweep_override() or override.value()):
            suffix = f"_{names[-1]}"
    if grid:
        return grid + suffix
    name = re.sub(r"[^\w.+-]+", "-", "_".join(sorted(names))).strip("-") or "defaults"
    if len(name) <= 100:
        return name
    return f"{name[:80]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


validation.register()
# The cache gives the jobs of a sweep, which have fewer overrides, the name of the whole.
OmegaConf.register_new_resolver("sweep_name", sweep_name, replace=True, use_cache=True)
OmegaConf.register_new_resolver("choices", schema.choices_text, replace=True)
OmegaConf.register_new_resolver("command", command_name, replace=True)
OmegaConf.register_new_resolver("conf", lambda: str(schema.CONF), replace=True)
