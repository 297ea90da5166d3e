"""What Hydra's launchers need from this process, or leave to it.

Imports no torch.
"""

import logging
import signal
import threading
from contextlib import suppress
from typing import Any

import psutil
from omegaconf import DictConfig


def is_joblib(launcher: Any) -> bool:
    """Whether hydra.launcher is joblib's. Raises ValueError if it is no launcher."""
    if not isinstance(launcher, DictConfig):
        raise ValueError(
            f"hydra.launcher={launcher}: a launcher is a choice; write hydra/launcher={launcher}"
        )
    return str(launcher._target_).endswith(".JoblibLauncher")


def check_launcher(launcher: DictConfig, devices: int) -> None:
    """Raise ValueError for what joblib's workers cannot do."""
    if not is_joblib(launcher):
        return
    if devices > 1:
        raise ValueError(
            f"trainer.devices={devices}: joblib's workers cannot start processes of their own;"
            " choose hydra/launcher=ray or submitit_local, or leave the launcher out"
        )
    if not launcher.n_jobs:
        raise ValueError("hydra.launcher.n_jobs=0: must be >= 1, or -1 for all cores")


def check_threads(launcher: DictConfig) -> None:
    """Raise ValueError if joblib's workers could not start their threads: joblib waits forever."""
    if not is_joblib(launcher) or not launcher.n_jobs:
        return
    from joblib import cpu_count, effective_n_jobs

    # Each worker has some threads of its own, and its share of the cores to compute on.
    needed = 8 * effective_n_jobs(launcher.n_jobs) + cpu_count()
    stop, started = threading.Event(), []
    try:
        for _ in range(needed):
            thread = threading.Thread(target=stop.wait)
            thread.start()
            started.append(thread)
    except RuntimeError as error:
        raise ValueError(
            f"hydra/launcher=joblib: its workers need {needed} processes and threads, of which"
            f" {len(started)} start; end others, raise `ulimit -u`, or leave the launcher out"
        ) from error
    finally:
        stop.set()
        for thread in started:
            thread.join()


def prefix_console_logs(prefix: str) -> None:
    """Put a job's name before each line that it logs to the terminal it shares with others."""
    for handler in logging.getLogger().handlers:
        is_file = isinstance(handler, logging.FileHandler)
        if isinstance(handler, logging.StreamHandler) and not is_file:
            handler.setFormatter(logging.Formatter(f"{prefix} | %(message)s"))


def end_local_jobs() -> None:
    """End the jobs that submitit runs on this machine, which outlive their driver."""
    controllers = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # the child has ended since
            if "submitit.local._local" in child.cmdline():
                # As submitit's LocalJob.cancel does; the controller ends its tasks.
                child.send_signal(signal.SIGINT)
                controllers.append(child)
    psutil.wait_procs(controllers, timeout=10)
