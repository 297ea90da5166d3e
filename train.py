"""Run one experiment, or with -m a sweep of them: `python train.py model=kmeans init=digit`."""

import gc
import logging
import os
import signal
import sys
import threading
from importlib.metadata import version
from pathlib import Path

try:
    import hydra
    from hydra._internal.hydra import Hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.plugins.sweeper import Sweeper
    from hydra.types import RunMode
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from digitlab import Busy, RunFailed, cli, config, mistakes, refusals, runs, schema, sweep
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
    if settings.runtime.choices.get("hydra/launcher") == "submitit_local":  # all jobs start at once on this machine
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    directory, swept = Path(settings.runtime.output_dir), settings.mode == RunMode.MULTIRUN
    if swept:
        opening = sweep.opening(directory.parent, directory.name)
        log.info(opening)
        if settings.runtime.choices.get("hydra/launcher") == "joblib":  # whose workers all write to one terminal
            label(opening.partition(":")[0])
    import_torch()
    from digitlab.train import run

    cfg = config.resumed(cfg, settings.overrides.task)
    config.check(cfg)  # again: a sweeper of another kind makes its own jobs
    score = float("nan")
    try:
        score = run(cfg, directory, sweep.read_plan(directory.parent).since if swept else 0.0)
    except RunFailed:
        failed.append(directory)
    except Busy:
        log.warning("Left alone: another process works on %s", directory)
        if not swept:  # a sweep waits for that process
            failed.append(directory)
    if swept:
        log.info(sweep.progress(directory.parent, directory.name))
    return score


def label(told: str) -> None:
    """Put a job's name before each line that it writes to the terminal."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setFormatter(logging.Formatter(f"{told} | %(message)s"))


def import_torch() -> None:
    """Import what takes seconds: not for --help or a mistake in the command.

    A Ctrl-C waits for the end of it: in half an import it would turn up as an error of another kind, or as none.
    """
    if "digitlab.train" in sys.modules:  # to freeze again would keep what earlier jobs left
        return
    asked: list[int] = []
    first = threading.current_thread() is threading.main_thread()  # which alone hears signals
    heard = first and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heard:
        signal.signal(signal.SIGINT, lambda number, _: asked.append(number))
    gc.disable()  # to look for garbage among what imports bring takes a fifth of their time, and finds none
    try:
        import digitlab.train  # noqa: F401

        gc.freeze()
    finally:
        gc.enable()
        if heard:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    if asked:
        raise KeyboardInterrupt


def main() -> int:
    """Run the command line; returns the exit code: 0, 1 a run failed, 2 a mistake in the command, 130 Ctrl-C."""
    if sys.argv[1:] == ["--version"]:
        print(f"digitlab {version('digitlab')}, Hydra {hydra.__version__}")
        return 0
    os.environ["HYDRA_FULL_ERROR"] = "1"  # mistakes reach this function, which says them in a line or two
    try:
        config.register()
        cli.compose_once()
        command = cli.parse(cli.in_place(cli.at_home(sys.argv[1:])))
        for job in command.jobs:
            config.check(job.cfg)
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
            runs.refuse_links(command.directory)
            runs.refuse_other(command.directory, runs.run_id(config.to_plain(job.cfg)))
            if runs.state(command.directory) == "running":
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
        if interrupted(mistake):
            print("Interrupted; no run was cut short", file=sys.stderr)
            return 130
        if not isinstance(mistake, HydraException | OmegaConfBaseException | YAMLError | ValueError | OSError):
            raise
        print(f"Error: {mistakes.explain(mistake, sys.argv[1:])}", file=sys.stderr)
        return 2
    return 1 if failed else 0


def interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error: where it falls into OmegaConf, what restores its flags may raise another."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def multirun(command: cli.Command) -> int:
    """Run a sweep and report on it, also where jobs or the launcher failed; returns the exit code."""
    directory, planned = command.directory, sweep.plan(command.jobs)
    assert directory is not None
    jobs = {directory / runs.run_id(job): job for job in (config.to_plain(job.cfg) for job in command.jobs)}
    runs.refuse_links(directory, runs.SWEEP_FILES)
    for folder in jobs:
        runs.refuse_links(folder)
        runs.refuse_other(folder, folder.name)
    kept = [folder for folder in jobs if runs.state(folder) == "completed"]
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
    began = sweep.begin(directory, planned, force=bool(first and first.force), root=first.data.root if first else "")
    if planned:  # all jobs are composed and checked; to compose them again takes 0.1 s each
        Sweeper.validate_batch_is_legal = lambda *_: None  # type: ignore[method-assign]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: else a launcher's workers would train on
    try:
        experiment()
        while sweep.wait_for_others(directory, planned):
            experiment()
    except KeyboardInterrupt:
        told = (
            f"Interrupted; the same command goes on with {directory}; scripts/report.py {directory} tells what is done"
        )
        raise KeyboardInterrupt(told) from None
    except (HydraException, OmegaConfBaseException):
        raise
    except Exception as error:  # of a launcher: a worker killed, a queue that refused
        remedy = "; there is no Slurm here, hydra/launcher=joblib takes all cores" if "srun" in str(error) else ""
        print(f"Error: the launcher stopped: {type(error).__name__}: {error}{remedy}", file=sys.stderr)
    else:
        sweep.end(directory, began)
    from digitlab import report  # matplotlib and pandas

    print(report.write([directory], directory / "report"))
    if planned and (more := len({path.parent for path in directory.glob("*/results.json")} - {*jobs})):
        print(f"Runs of earlier commands among these: {more}")
    if kept:
        from digitlab.train import made_otherwise  # torch

        count = sum(bool(made_otherwise(runs.read_results(folder) or {}, jobs[folder])) for folder in kept)
        if count:
            print(f"WARNING: {count} of these results were made before, by other code or of other data (see above);")
            print("  force=true makes them anew, hydra.sweep.dir=... keeps both.")
    since = sweep.read_plan(directory).since if first and first.force else 0.0
    undone = [folder for folder in jobs if since and not runs.begun_since(folder, since)]  # for want of data
    return 0 if all(runs.state(folder) == "completed" for folder in jobs) and not failed and not undone else 1


if __name__ == "__main__":
    sys.exit(main())
