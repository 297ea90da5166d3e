"""The command `digitlab`, which is also `python train.py`: Hydra's command line and exit codes."""

import os
import sys

from digitlab.runtime.command import command_name

try:
    import hydra

    from digitlab import RunFailed, app
    from digitlab.config.errors import format_error, is_mistake
    from digitlab.config.schema import CONF
    from digitlab.runtime import signals
    from digitlab.runtime.launchers import end_local_jobs
except ModuleNotFoundError as error:
    remedy = "install digitlab again, with what it depends on"
    if command_name() == "python train.py":
        remedy = "run 'make setup', then '. .venv/bin/activate'"
    sys.exit(f"{error.name} is not installed in {sys.executable}: {remedy}")
except KeyboardInterrupt:
    sys.exit(130)

# The task is a function of another module, so that a launcher's worker finds it by its name.
run_command = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(
    app.run_job
)


def main() -> int:
    """Run the command line.

    Returns:
        0; 1 if a run failed, 2 for a mistake in the command, 130 if a signal ended it.
    """
    signals.install()
    # Hydra then raises its errors, which are printed below, and prints no traceback.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        run_command()
    except BaseException as error:
        return exit_code(error)
    return 0


def exit_code(error: BaseException) -> int:
    """Print what ended the command, unless it was printed already; returns the exit code."""
    if isinstance(error, SystemExit):
        # A callback can end a run by SystemExit alone, which then holds the error.
        held: object = error.code
        if not isinstance(held, Exception):
            raise error
        error = held
    # OmegaConf, restoring its flags, may have turned a signal into another error.
    if isinstance(error, KeyboardInterrupt) or signals.received:
        end_local_jobs()
        if not (isinstance(error, KeyboardInterrupt) and error.args):
            print("Interrupted before a run started", file=sys.stderr)
        return 130
    if isinstance(error, RunFailed):
        return 1
    if isinstance(error, BrokenPipeError):
        # The reader of our output, such as `head`, has closed it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if not is_mistake(error):
        raise error
    print(f"Error: {format_error(error, sys.argv[1:])}", file=sys.stderr)
    return 2
