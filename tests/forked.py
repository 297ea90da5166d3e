"""A script in a process that forks from one with the slow imports done: seconds faster.

The server of the forks imports this module, and with it what runs and sweeps import.
"""

import os
import resource
import runpy
import signal
import sys
from pathlib import Path

import lightning.pytorch  # noqa: F401
import pytest
import sklearn.metrics
import sklearn.mixture  # noqa: F401
import torchmetrics.image.fid  # noqa: F401
from hydra.core.plugins import Plugins

import digitlab.cli
import digitlab.report.live
import digitlab.report.page
import digitlab.report.run_page
import digitlab.training.experiment  # noqa: F401
from digitlab.models import autoencoder, digit_classifier

# Hydra imports the plugins of all launchers when it starts, and once in a process.
Plugins.instance()


def shorten_scoring(patch: pytest.MonkeyPatch, cache: Path) -> None:
    """Shorten the training of the digit classifier, and let it score few samples.

    Args:
        patch: Replaces the values.
        cache: The directory of the trained classifiers.
    """
    # An epoch has five minibatches.
    patch.setattr(digit_classifier, "EPOCHS", 30)
    patch.setattr(digit_classifier, "STEPS", 0)
    patch.setattr(autoencoder, "SCORED_SAMPLES", 200)
    patch.setattr(digit_classifier, "CACHE", cache)


def run_script(
    script: Path,
    arguments: list[str],
    folder: Path,
    out: Path,
    err: Path,
    *,
    cache: Path,
    max_file_size: int = -1,
) -> None:
    """Run a script with arguments in a folder and end; the target of a forked process.

    Args:
        script: The script, such as train.py.
        arguments: The overrides and flags.
        folder: The working directory.
        out: The file to which stdout is appended.
        err: The file to which stderr is appended.
        cache: The directory of the trained digit classifiers.
        max_file_size: The largest number of bytes that a file can have; -1 for no limit.
    """
    os.chdir(folder)
    shorten_scoring(pytest.MonkeyPatch(), cache)
    for number, path in ((1, out), (2, err)):
        with path.open("a") as file:
            os.dup2(file.fileno(), number)
    # Shells let background processes ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_size, -1))
    # The processes that a command starts, as those of DDP, run the same script.
    sys.argv = [str(script), *arguments]
    runpy.run_path(str(script), run_name="__main__")
