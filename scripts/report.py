"""Report on runs or sweeps: the best setting, the effect of each setting, failures."""

import os
from pathlib import Path

import command

from digitlab.report.by_metric import Criterion
from digitlab.report.page import write_report
from digitlab.runs.files import SWEEP_FILES, check_links


@command.exit_on_error
def main() -> None:
    """Write report.html, report.md, runs.csv and their figures, and print a summary."""
    parser = command.make_parser(__doc__)
    parser.add_argument(
        "sweeps",
        type=command.parse_path,
        nargs="+",
        metavar="SWEEP",
        help="directory of a run or of runs",
    )
    parser.add_argument(
        "--out",
        type=command.parse_path,
        help="directory to write (default: report/ in SWEEP, or in the parent of several)",
    )
    parser.add_argument(
        "--by",
        metavar="METRIC",
        help="rank by another metric than the objective, as test/nmi: a choice after the fact",
    )
    better = parser.add_mutually_exclusive_group()
    for direction, word in (("max", "higher"), ("min", "lower")):
        better.add_argument(
            f"--{direction}",
            dest="direction",
            action="store_const",
            const=direction,
            help=f"{word} values of METRIC are better",
        )
    options = parser.parse_args()
    if options.direction and not options.by:
        raise ValueError(f"--{options.direction}: belongs to a metric; add --by METRIC")
    out = options.out
    if out is None:
        folders = [folder.resolve() for folder in options.sweeps]
        out = Path(os.path.commonpath(folders)) / "report"
        check_links(out.parent, SWEEP_FILES)
    criterion = Criterion(options.by, options.direction) if options.by else None
    print(write_report(options.sweeps, out, criterion))


if __name__ == "__main__":
    main()
