"""What the command lines of the scripts share. Imported before other libraries, it says what to do without them."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    from omegaconf.errors import OmegaConfBaseException

    from digitlab import mistakes
except ModuleNotFoundError as error:
    sys.exit(f"{error.name} is not installed in {sys.executable}: run 'make setup', then '. .venv/bin/activate'")


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that keeps the lines of a module's docstring."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def study_parser(description: str | None, out: str, what: str) -> argparse.ArgumentParser:
    """The parser of a study on MNIST that writes `what` into a folder."""
    options = parser(description)
    options.add_argument("--out", type=Path, default=Path(out), help=f"folder of {what} (default {out})")
    root = os.environ.get("DIGITLAB_DATA", "data")
    options.add_argument("--root", default=root, help="folder of MNIST's files (default DIGITLAB_DATA or data)")
    return options


@contextmanager
def mistakes_told(by: argparse.ArgumentParser) -> Iterator[None]:
    """End the program with a line and exit code 2 for a mistake of its user, or of the disk."""
    try:
        yield
    except (ValueError, OSError, OmegaConfBaseException) as mistake:
        by.exit(2, f"Error: {mistakes.explain(mistake, [])}\n")
