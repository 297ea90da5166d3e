"""Report on the runs of one or more sweeps: the best, what each setting did, what failed, what chance explains."""

import os
from pathlib import Path

import command

from digitlab.report.page import write_report
from digitlab.runs.files import SWEEP_FILES, check_links


@command.ends_in_words
def main() -> None:
    """Write report.md, runs.csv and their pictures, and print the table."""
    line = command.parser(__doc__)
    line.add_argument("sweeps", type=command.path, nargs="+", metavar="SWEEP", help="directory with runs in it")
    line.add_argument("--out", type=command.path, help="where to write (default: report/ in SWEEP, or above several)")
    options = line.parse_args()
    out = options.out or Path(os.path.commonpath([folder.resolve() for folder in options.sweeps])) / "report"
    if options.out is None:
        check_links(out.parent, SWEEP_FILES)
    print(write_report(options.sweeps, out))


if __name__ == "__main__":
    main()
