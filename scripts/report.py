"""Report on the runs of one or more sweeps: the best run, the effect of each setting, failures."""

import os
from pathlib import Path

import command

from digitlab.report.page import write_report
from digitlab.runs.files import SWEEP_FILES, check_links


@command.exit_on_error
def main() -> None:
    """Write report.md, runs.csv and their figures, and print a summary."""
    parser = command.make_parser(__doc__)
    parser.add_argument(
        "sweeps", type=command.parse_path, nargs="+", metavar="SWEEP", help="directory of runs"
    )
    parser.add_argument(
        "--out",
        type=command.parse_path,
        help="directory to write (default: report/ in SWEEP, or in the parent of several)",
    )
    options = parser.parse_args()
    out = options.out
    if out is None:
        folders = [folder.resolve() for folder in options.sweeps]
        out = Path(os.path.commonpath(folders)) / "report"
        check_links(out.parent, SWEEP_FILES)
    print(write_report(options.sweeps, out))


if __name__ == "__main__":
    main()
