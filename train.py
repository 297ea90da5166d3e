"""Run one experiment, or with -m a sweep of them: `python train.py model=kmeans init=digit`."""

import gc
import logging
import os
import platform
import signal
import sys
from collections.abc import Sequence
from contextlib import chdir
from importlib.metadata import version
from pathlib import Path

try:
    import hydra
    import psutil
    from hydra._internal.hydra import Hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.plugins.sweeper import Sweeper
    from hydra.types import RunMode
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from digitlab import Busy, RunFailed, cli, refusals, sweep
    from digitlab.config import errors, schema, validation
    from digitlab.runs.files import SWEEP_FILES, check_links
    from digitlab.runs.provenance import make_run_id
    from digitlab.runs.results import check_same_run, read_results, run_state, started_since
    from digitlab.runtime import signals
except ModuleNotFoundError as error:
    sys.exit(f"{error.name} is not installed in {sys.executable}: run 'make setup', then '. .venv/bin/activate'")
except KeyboardInterrupt:
    sys.exit(130)


logging.raiseExceptions = False  # where train.log finds the disk full the run says so once, not each line of its log
log = logging.getLogger("digitlab")
failed: list[Path] = []  # of the jobs of this process those that did


@hydra.main(version_base="1.3", config_path=str(schema.CONF), config_name="config")
def experiment(cfg: DictConfig) -> float:
    """Run one job in the directory that Hydra made for it."""
    settings = HydraConfig.get()
    if cfg.dry_run:  # main() answers, but for Hydra's own --run and the like, which it does not read
        raise ValueError("dry_run=true: beside these flags nothing can be told; leave them out, but for -m")
    directory = Path(settings.runtime.output_dir)
    if settings.mode != RunMode.MULTIRUN:
        return job(cfg, directory, settings.overrides.task)
    launcher = settings.runtime.choices.get("hydra/launcher")
    if launcher == "submitit_local":  # all jobs start at once on this machine
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    planned = sweep.planned(directory)
    if planned is None and not (directory.parent / sweep.PLAN).is_file():
        return lost(directory, f"{directory.parent}: the sweep's folder is not there on {platform.node()}")
    place = Path(planned.folder) if planned else Path.cwd()
    if not place.is_dir():
        return lost(directory, f"{place}: where the command was given is not there on {platform.node()}")
    opening = sweep.opening(directory.parent, directory.name)
    log.info(opening)
    if launcher in ("joblib", "ray"):  # whose workers all write to one terminal
        label(opening.partition(":")[0])
    if planned:
        cfg.data.root = planned.root
    with chdir(place):  # a worker elsewhere has another folder, in which relative paths are others
        score = job(cfg, directory, settings.overrides.task, planned.since if planned else 0.0)
    log.info(sweep.progress(directory.parent, directory.name))
    return score


def job(cfg: DictConfig, directory: Path, words: Sequence[str], since: float | None = None) -> float:
    """Run one job; `since` is given to those of a sweep."""
    import_torch()
    from digitlab.training.experiment import run_experiment

    cfg = validation.resumed(cfg, words)
    validation.check(cfg)  # again: a sweeper of another kind makes its own jobs
    try:
        return run_experiment(cfg, directory, since or 0.0)
    except RunFailed:
        failed.append(directory)
    except Busy:
        log.warning("Left alone: another process works on %s", directory)
        if since is None:  # a sweep waits for that process
            failed.append(directory)
    except OSError as error:  # before there was a run
        log.error("Failed: %s", errors.format_error(error, []))
        failed.append(directory)
    return float("nan")


def lost(directory: Path, reason: str) -> float:
    """Say why a worker cannot begin a job; the others go on."""
    log.error("Failed: %s; all workers need the file system of this sweep", reason)
    failed.append(directory)
    return float("nan")


def label(told: str) -> None:
    """Put a job's name before each line that it writes to the terminal."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setFormatter(logging.Formatter(f"{told} | %(message)s"))


def import_torch() -> None:
    """Import what takes seconds: not for --help or a mistake in the command.

    A signal waits for the end of it: in half an import it would come out as an error of another kind, or not at all.
    """
    if "digitlab.training.experiment" in sys.modules:  # to freeze again would keep what earlier jobs left
        return
    with signals.deferred():
        gc.disable()  # to look for garbage among what imports bring takes a fifth of their time, and finds none
        try:
            import digitlab.training.experiment  # noqa: F401

            gc.freeze()
        finally:
            gc.enable()


def main() -> int:
    """Run the command line; returns the exit code: 0, 1 a run failed, 2 a mistake in the command, 130 Ctrl-C."""
    if sys.argv[1:] == ["--version"]:
        print(f"digitlab {version('digitlab')}, Hydra {hydra.__version__}")
        return 0
    signals.install()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # mistakes reach this function, which says them in a line or two
    try:
        validation.register()
        cli.compose_once()
        command = cli.parse(cli.in_place(cli.at_home(sys.argv[1:])))
        for job in command.jobs:
            validation.check(job.cfg)
        if command.jobs and not command.multirun:
            cli.refuse_mode(command.words)
        if any(job.cfg.dry_run for job in command.jobs):
            print(sweep.dry_run(command))
            return 0
        sys.argv[1:] = command.words
        if {"--help", "-h"} & set(command.words):  # Hydra's own list takes 0.6 s to make
            Hydra.format_config_groups = lambda *_: cli.choices_text()  # type: ignore[method-assign]
        if command.multirun:
            return multirun(command)
        for job in command.jobs:  # Hydra writes into the directory before the job can look at it
            assert command.directory is not None
            check_links(command.directory)
            check_same_run(command.directory, make_run_id(validation.to_plain(job.cfg)))
            if run_state(command.directory) == "running":
                print(f"Left alone: another process works on {command.directory}", file=sys.stderr)
                return 1
            import_torch()  # now: who interrupts it is left no directory without a run
        experiment()
    except KeyboardInterrupt as stop:
        told = "Interrupted; no run was cut short"
        if stop.args:  # by a run, with its directory, or by a sweep
            told = f"Continue with: python train.py resume={stop}" if Path(str(stop)).is_dir() else str(stop)
        print(told, file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read what we print has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as mistake:
        if signals.received:  # which OmegaConf, restoring its flags, may have made another error of
            print("Interrupted; no run was cut short", file=sys.stderr)
            return 130
        if not isinstance(mistake, HydraException | OmegaConfBaseException | YAMLError | ValueError | OSError):
            raise
        print(f"Error: {errors.format_error(mistake, sys.argv[1:])}", file=sys.stderr)
        return 2
    return 1 if failed else 0


def multirun(command: cli.Command) -> int:
    """Run a sweep and report on it, also where jobs or the launcher failed; returns the exit code."""
    directory, planned = command.directory, sweep.plan(command.jobs)
    assert directory is not None
    jobs = {directory / make_run_id(job): job for job in (validation.to_plain(job.cfg) for job in command.jobs)}
    check_links(directory, SWEEP_FILES)
    for folder in jobs:
        check_links(folder)
        check_same_run(folder, folder.name)
    kept = [folder for folder in jobs if run_state(folder) == "completed"]
    if command.workers > 1:
        refusals.require_threads(command.workers)
    if planned and len(planned) < len(command.jobs):
        print(sweep.merged(command.jobs, planned))
    if planned:
        print(f"{len(planned)} job{'s' * (len(planned) != 1)} in {directory}")
    if kept and not command.jobs[0].cfg.force:
        other = sum(bool(sweep.other_origin(folder, command.jobs[0].cfg.data.root)) for folder in kept)
        told = f", {other} of them by other code or from another data.root" if other else ""
        print(f"{len(kept)} of {len(jobs)} jobs are finished already{told}")
    first = command.jobs[0].cfg if command.jobs else None
    root = first.data.root if first else ""
    planned = sweep.begin(directory, planned, force=bool(first and first.force), root=root)
    if planned:  # all jobs are composed and checked; to compose them again takes 0.1 s each
        Sweeper.validate_batch_is_legal = lambda *_: None  # type: ignore[method-assign]
    # Ray hides lines of one job that are like another's, and answers SIGTERM with a stack trace of its own.
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
    try:
        experiment()
        while sweep.wait_for_others(directory, planned):
            experiment()
    except (KeyboardInterrupt, SystemExit):  # Ray turns SIGTERM into the second
        end_local_jobs()
        told = (
            f"Interrupted; the same command goes on with {directory}; scripts/report.py {directory} tells what is done"
        )
        raise KeyboardInterrupt(told) from None
    except (HydraException, OmegaConfBaseException):
        raise
    except Exception as error:  # of a launcher: a worker killed, a queue that refused
        if signals.received:
            raise
        remedy = "; there is no Slurm here, hydra/launcher=joblib takes all cores" if "srun" in str(error) else ""
        print(f"Error: the launcher stopped: {type(error).__name__}: {error}{remedy}", file=sys.stderr)
    else:
        sweep.end(directory, planned)
    from digitlab.report.page import write_report  # matplotlib and pandas

    print(write_report([directory], directory / "report"))
    if planned and (more := len({path.parent for path in directory.glob("*/results.json")} - {*jobs})):
        print(f"Runs of earlier commands among these: {more}")
    if kept:
        from digitlab.training.experiment import describe_differences  # torch

        count = sum(bool(describe_differences(read_results(folder) or {}, jobs[folder])) for folder in kept)
        if count:
            print(f"WARNING: {count} of these results were made before, by other code or of other data (see above);")
            print("  force=true makes them anew, hydra.sweep.dir=... keeps both.")
    undone = [  # for want of data
        job for job in planned if first and first.force and not started_since(directory / job.run_id, job.since)
    ]
    return 0 if all(run_state(folder) == "completed" for folder in jobs) and not failed and not undone else 1


def end_local_jobs() -> None:
    """End the jobs that submitit runs on this machine, which it leaves alone when their sweep ends."""
    controllers = [process for process in psutil.Process().children() if "submitit.local._local" in process.cmdline()]
    for process in controllers:
        process.send_signal(signal.SIGINT)  # as LocalJob.cancel does; it ends its tasks
    psutil.wait_procs(controllers, timeout=10)


if __name__ == "__main__":
    sys.exit(main())
