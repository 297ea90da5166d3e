"""The name of the command, for the help text and for messages that say what to run next.

Imports nothing but the standard library.
"""

import sys
from pathlib import Path


def command_name() -> str:
    """How this command line is called: `python train.py` in a checkout, else `digitlab`."""
    is_script = Path(sys.argv[0]).name == "train.py"
    return "python train.py" if is_script else "digitlab"
