"""Run what README's table of results lists, say which rows come out otherwise, and draw the pictures of the docs anew.

A row names its experiment between backquotes, and has one loss a seed, from seed 0 on: the training loss where it says
so, else the test loss. Finished runs are kept in outputs/reproduce, so that an interrupted call goes on.
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

from digitlab import cli, figures
from digitlab.config import validation
from digitlab.formatting import format_loss
from digitlab.models import checkpoints
from digitlab.models.autoencoder import Autoencoder
from digitlab.runs.files import atomic_write, directory_lock, read_json
from digitlab.runs.provenance import describe_other_code, make_run_id
from digitlab.runs.results import best_checkpoint, read_results, remove_outputs

ROOT = Path(__file__).resolve().parents[1]
OUT = Path("outputs") / "reproduce"
ROW = re.compile(r"^\| `(?P<words>[^`]+)`(?P<what>[^|]*)\|[^|]*\|(?P<here>[^|]*)\|", re.MULTILINE)
LOSS = re.compile(r"\b0\.\d{4}\b")


class Row(NamedTuple):
    """A row of the table: what to run, and the losses that it tells, from seed 0 on."""

    words: str
    metric: str
    losses: list[str]


def table(readme: str) -> list[Row]:
    """The rows of README's table of results."""
    rows = []
    for found in ROW.finditer(readme):
        words = found["words"] if "=" in found["words"] else f"experiment={found['words']}"
        metric = "train/loss" if "training loss" in found["what"] else "test/loss"
        if losses := LOSS.findall(found["here"]):
            rows.append(Row(words, metric, losses))
    return rows


def folder(words: str) -> Path:
    """Where the runs of a row are."""
    return OUT / re.sub(r"[^\w.-]+", "_", words)


def place(words: str, seed: int) -> Path:
    """The directory of a row's run, where others of an earlier configuration may lie beside."""
    (job,) = cli.parse([*words.split(), f"seed={seed}"]).jobs
    return folder(words) / make_run_id(validation.to_plain(job.cfg))


def forget(run: Path) -> None:
    """Have a run that other code made made anew: it says nothing of this code. Leaves alone what is at work."""
    if (result := read_results(run)) and describe_other_code(result):
        with directory_lock(run) as mine:
            if mine:
                remove_outputs(run)


def run(row: Row) -> str:
    """Run a row's seeds, but for those that are finished; tells in a line what came out, and whether README agrees."""
    seeds = range(len(row.losses))
    places = [place(row.words, seed) for seed in seeds]
    command = [*row.words.split(), f"seed={','.join(map(str, seeds))}", f"hydra.sweep.dir={folder(row.words)}"]
    for run in places:
        forget(run)
    done = subprocess.run([sys.executable, str(ROOT / "train.py"), "-m", *command], check=False)
    if done.returncode:
        sys.exit(done.returncode)
    made = [read_json(run / "results.json") for run in places]
    losses = [format_loss(result["metrics"][row.metric]) for result in made]
    seconds = statistics.median(result["fit_seconds"] for result in made)
    same = "as in README" if losses == row.losses else f"DIFFERS: README has {', '.join(row.losses)}"
    return f"{row.words}: {row.metric} {', '.join(losses)}, {seconds:.1f} s of training; {same}"


def draw(centers: np.ndarray, fog: Autoencoder, best: Autoencoder) -> None:
    """The pictures of the docs: README's, and those of docs/generation.md. Centres are (10, 28, 28)."""
    pictures = {
        "generated_q2c": (fog.generate(20, 0), "q2c, seed 0: z as the report drew it"),
        "generated_best": (best.generate(20, 1), "autoencoder_best, seed 1: z from the mixture"),
        "generated_best_standard_normal": (
            best.generate(20, 1, "standard_normal"),
            "autoencoder_best, seed 1: z from N(0, I)",
        ),
    }
    drawn = {name: figures.image_grid(images.numpy(), None, 10, told) for name, (images, told) in pictures.items()}
    rows = [centers, pictures["generated_q2c"][0][:10].numpy(), pictures["generated_best"][0].numpy()]
    names = ["k-means", "q2c", "ours", "ours"]
    heading = "Centres of k-means; digits from random z: the report's autoencoder (q2c), and ours"
    drawn["overview"] = figures.image_grid(np.concatenate(rows), None, 10, heading, names)
    for name, figure in drawn.items():
        with atomic_write(ROOT / "docs" / f"{name}.png") as part:
            Image.fromarray(figures.render(figure)).save(part, "png", optimize=True)


def autoencoder(words: str, seed: int) -> Autoencoder:
    """The autoencoder of a run."""
    model = checkpoints.load_model(best_checkpoint(place(words, seed)))
    assert isinstance(model, Autoencoder)
    return model


@command.ends_in_words
def main() -> None:
    """Run, compare, draw."""
    command.parser(__doc__).parse_args()
    validation.register()
    lines = [run(row) for row in table((ROOT / "README.md").read_text())]
    best = place("experiment=kmeans_best", 0)
    centers = np.load(best / "centers.npy")
    digit = np.loadtxt(best / "confusion_matrix.csv", delimiter=",", skiprows=1)[:, 1:].argmax(0)
    draw(
        centers[digit.argsort(kind="stable")],
        autoencoder("experiment=q2c", 0),
        autoencoder("experiment=autoencoder_best", 1),
    )
    print("\n".join(lines))
    print(f"{sum('DIFFERS' in line for line in lines)} of {len(lines)} rows differ; pictures drawn anew in docs/")


if __name__ == "__main__":
    main()
