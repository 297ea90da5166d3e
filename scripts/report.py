"""Report on the runs of one or more sweeps: the best, what each setting did, what failed, what chance explains."""

import argparse
import os
from pathlib import Path

from digitlab import mistakes, report, runs


def main() -> None:
    """Write report.md, runs.csv and their pictures, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweeps", type=Path, nargs="+", metavar="SWEEP", help="directory with runs in it")
    parser.add_argument("--out", type=Path, help="where to write (default: report/ in SWEEP, or above several)")
    options = parser.parse_args()
    try:
        out = options.out or Path(os.path.commonpath([folder.resolve() for folder in options.sweeps])) / "report"
        if options.out is None:
            runs.refuse_links(out.parent, runs.SWEEP)
        print(report.write(options.sweeps, out))
    except (ValueError, OSError) as mistake:
        parser.exit(2, f"Error: {mistakes.explain(mistake, [])}\n")


if __name__ == "__main__":
    main()
