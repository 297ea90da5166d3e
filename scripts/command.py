"""What the command lines of the scripts share. Imported before other libraries, it says what to do without them."""

import argparse
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import TracebackType

try:
    from omegaconf.errors import OmegaConfBaseException

    from digitlab.config import errors
except ModuleNotFoundError as error:
    sys.exit(f"{error.name} is not installed in {sys.executable}: run 'make setup', then '. .venv/bin/activate'")


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that keeps the lines of a module's docstring."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def study_parser(description: str | None, out: str, what: str) -> argparse.ArgumentParser:
    """The parser of a study on MNIST that writes `what` into a folder."""
    options = parser(description)
    options.add_argument("--out", type=path, default=Path(out), help=f"folder of {what} (default {out})")
    root = os.environ.get("DIGITLAB_DATA", "data")
    options.add_argument("--root", default=root, help="folder of MNIST's files (default DIGITLAB_DATA or data)")
    return options


def path(name: str) -> Path:
    """The path that a word names: behind = no shell spells ~ out."""
    return Path(os.path.expanduser(name))  # noqa: PTH111, as pathlib's raises for ~nobody


def ends_in_words(main: Callable[[], None]) -> Callable[[], None]:
    """Make a program end in a line: with exit code 2 for a mistake of its user or of the disk."""

    @wraps(main)
    def run() -> None:
        try:
            main()
        except BrokenPipeError:  # whoever read what is printed has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except (ValueError, OSError, OmegaConfBaseException) as mistake:
            print(f"Error: {errors.format_error(mistake, [])}", file=sys.stderr)
            sys.exit(2)

    return run


def tell_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Say of Ctrl-C what it is; Python then exits with 130."""
    if issubclass(kind, KeyboardInterrupt):
        print("Interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = tell_uncaught  # from here on, while a script imports as well
