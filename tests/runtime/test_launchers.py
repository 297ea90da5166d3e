"""What this process does for Hydra's launchers: it ends the jobs that would outlive it."""

import subprocess
import sys
import time

import psutil

from digitlab.runtime import launchers


def test_a_child_that_has_ended_does_not_disturb_the_end_of_a_command() -> None:
    """A zombie, whose exit code has not been read, has no command line to ask for."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    launchers.end_local_jobs()
    assert child.wait() == 0
