"""Run the experiments of README's table of results and redraw the figures of the documentation.

A row names its experiment between backquotes and lists one loss per seed, from seed 0 on: the
training loss if the row says so, else the test loss. Rows with other results are reported. Finished
runs stay in outputs/reproduce, so that an interrupted call continues where it stopped.
"""

import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import command
import numpy as np
from PIL import Image

from digitlab import app, figures
from digitlab.config import validation
from digitlab.data.images import to_array
from digitlab.formatting import format_loss
from digitlab.models import checkpoints
from digitlab.models.autoencoder import Autoencoder
from digitlab.runs.files import atomic_write, directory_lock, read_json
from digitlab.runs.provenance import describe_other_code, make_run_id
from digitlab.runs.results import best_checkpoint, read_results, remove_outputs

ROOT = Path(__file__).resolve().parents[1]
OUT = Path("outputs") / "reproduce"
ROW = re.compile(
    r"^\| `(?P<words>[^`]+)`(?P<description>[^|]*)\|[^|]*\|(?P<losses>[^|]*)\|", re.MULTILINE
)
LOSS = re.compile(r"\b0\.\d{4}\b")


class Row(NamedTuple):
    """A row of the table: the overrides to run, and the losses from seed 0 on."""

    words: str
    metric: str
    losses: list[str]


def parse_table(readme: str) -> list[Row]:
    """Parse the rows of README's table of results."""
    rows = []
    for match in ROW.finditer(readme):
        words = match["words"] if "=" in match["words"] else f"experiment={match['words']}"
        metric = "train/loss" if "training loss" in match["description"] else "test/loss"
        if losses := LOSS.findall(match["losses"]):
            rows.append(Row(words, metric, losses))
    return rows


def folder(words: str) -> Path:
    """Return the folder with the runs of a row."""
    return OUT / re.sub(r"[^\w.-]+", "_", words)


def run_directory(words: str, seed: int) -> Path:
    """Return the directory of a run; runs of earlier configurations may lie next to it."""
    cfg = app.compose_config([*words.split(), f"seed={seed}"])
    return folder(words) / make_run_id(validation.to_plain(cfg))


def remove_outdated(run: Path) -> None:
    """Remove the outputs of a run of other code, unless another process is working on it."""
    results = read_results(run)
    if results is not None and describe_other_code(results):
        with directory_lock(run) as is_locked:
            if is_locked:
                remove_outputs(run)


def run_row(row: Row) -> str:
    """Run the seeds of a row that are not finished and compare the losses with README."""
    seeds = range(len(row.losses))
    directories = [run_directory(row.words, seed) for seed in seeds]
    for run in directories:
        remove_outdated(run)
    overrides = [f"seed={','.join(map(str, seeds))}", f"hydra.sweep.dir={folder(row.words)}"]
    command = [sys.executable, str(ROOT / "train.py"), "-m", *row.words.split(), *overrides]
    done = subprocess.run(command, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    results = [read_json(run / "results.json") for run in directories]
    losses = [format_loss(result["metrics"][row.metric]) for result in results]
    seconds = statistics.median(result["fit_seconds"] for result in results)
    verdict = "as in README"
    if losses != row.losses:
        verdict = f"DIFFERS: README has {', '.join(row.losses)}"
    training = f"{seconds:.1f} s of training"
    return f"{row.words}: {row.metric} {', '.join(losses)}, {training}; {verdict}"


def draw_figures(centers: np.ndarray, q2c: Autoencoder, best: Autoencoder) -> None:
    """Draw the figures of README and docs/generation.md; centres are (10, 28, 28)."""
    generated = {
        "generated_q2c": (q2c.generate(20, 0), "q2c, seed 0: z as the report drew it"),
        "generated_best": (best.generate(20, 1), "autoencoder_best, seed 1: z from the mixture"),
        "generated_best_standard_normal": (
            best.generate(20, 1, "standard_normal"),
            "autoencoder_best, seed 1: z from N(0, I)",
        ),
    }
    drawn = {
        name: figures.image_grid(to_array(images), None, 10, title)
        for name, (images, title) in generated.items()
    }
    digits = {name: to_array(images) for name, (images, _) in generated.items()}
    rows = np.concatenate([centers, digits["generated_q2c"][:10], digits["generated_best"]])
    names = ["k-means", "q2c", "ours", "ours"]
    title = "Centres of k-means; digits from random z: the report's autoencoder (q2c), and ours"
    drawn["overview"] = figures.image_grid(rows, None, 10, title, names)
    for name, figure in drawn.items():
        with atomic_write(ROOT / "docs" / f"{name}.png") as part:
            Image.fromarray(figures.render(figure)).save(part, "png", optimize=True)


def load_autoencoder(words: str, seed: int) -> Autoencoder:
    """Load the autoencoder of a run."""
    model = checkpoints.load_model(best_checkpoint(run_directory(words, seed)))
    assert isinstance(model, Autoencoder)
    return model


@command.exit_on_error
def main() -> None:
    """Run all rows, draw the figures and print the comparison."""
    command.make_parser(__doc__).parse_args()
    lines = [run_row(row) for row in parse_table((ROOT / "README.md").read_text())]
    best = run_directory("experiment=kmeans_best", 0)
    centers = np.load(best / "centers.npy")
    confusion = np.loadtxt(best / "confusion_matrix.csv", delimiter=",", skiprows=1)[:, 1:]
    # Show the centres in the order of their digits.
    order = confusion.argmax(0).argsort(kind="stable")
    draw_figures(
        centers[order],
        load_autoencoder("experiment=q2c", 0),
        load_autoencoder("experiment=autoencoder_best", 1),
    )
    print("\n".join(lines))
    differing = sum("DIFFERS" in line for line in lines)
    print(f"{differing} of {len(lines)} rows differ; the figures in docs/ are redrawn")


if __name__ == "__main__":
    main()
