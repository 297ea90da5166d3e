"""Share the command-line handling of the scripts.

Import this module before other libraries: if one is missing, it prints how to install them.
"""

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
    sys.exit(
        f"{error.name} is not installed in {sys.executable}:"
        " run 'make setup', then '. .venv/bin/activate'"
    )


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Create a parser that keeps the line breaks of a module's docstring."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_plugins(parser: argparse.ArgumentParser) -> None:
    """Add the option that names the files of the user's own models; see `plugins.load`."""
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE",
        help="a file that registers the run's model, for models of your own; may be repeated",
    )


def make_study_parser(description: str | None, out: str, contents: str) -> argparse.ArgumentParser:
    """Create the parser of a study on MNIST that writes `contents` to the folder `out`."""
    parser = make_parser(description)
    parser.add_argument(
        "--out", type=parse_path, default=Path(out), help=f"folder of {contents} (default {out})"
    )
    root = os.environ.get("DIGITLAB_DATA", "data")
    parser.add_argument(
        "--root", default=root, help="folder of the MNIST files (default DIGITLAB_DATA or data)"
    )
    return parser


def parse_path(name: str) -> Path:
    """Expand ~, which shells leave as it is after an equals sign."""
    return Path(os.path.expanduser(name))  # noqa: PTH111, as pathlib's raises for ~nobody


def exit_on_error(main: Callable[[], None]) -> Callable[[], None]:
    """Print user and disk errors in one line and exit with code 2."""

    @wraps(main)
    def run() -> None:
        try:
            main()
        except BrokenPipeError:
            # The reader of the output, such as `head`, has closed the pipe.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except (ValueError, OSError, OmegaConfBaseException) as error:
            print(f"Error: {errors.format_error(error, [])}", file=sys.stderr)
            sys.exit(2)

    return run


def print_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print a Ctrl-C in one word, other errors with their traceback; Python exits with 130 or 1."""
    if issubclass(kind, KeyboardInterrupt):
        print("Interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


# Installed on import, so that it also covers the imports of a script.
sys.excepthook = print_uncaught
