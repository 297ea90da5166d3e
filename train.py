"""Run one experiment, or with -m a sweep of them: `python train.py model=kmeans init=digit`.

An installed digitlab has the same command as `digitlab`. Its @hydra.main, a word that Hydra's
completion looks for in this file, is in digitlab.cli.
"""

import sys

try:
    from digitlab.cli import main
except ModuleNotFoundError as error:
    remedy = "run 'make setup', then '. .venv/bin/activate'"
    sys.exit(f"{error.name} is not installed in {sys.executable}: {remedy}")

if __name__ == "__main__":
    sys.exit(main())
