"""How fast is digitlab? Ratios against peers in the same run, what the laboratory itself costs, how the cost grows.

Each contender lives in a process of its own and they take turns, so that a noisy machine disturbs all alike. A ratio
is digitlab's time by the other's, the median over the rounds and, in brackets, its least and its largest. The curves of
the figure, and what a job of a sweep costs, are measured once.
Writes benchmark.json, .md and .png.
"""

import importlib.util
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import command
import contenders as peers
import pandas as pd
import torch
from contenders import Contender, Outcome, ours
from matplotlib.figure import Figure

from digitlab.data.mnist import load
from digitlab.formatting import format_loss
from digitlab.runs.files import atomic_write, resolve_path, write_json
from digitlab.runs.provenance import library_versions

ROOT = Path(__file__).resolve().parents[1]
KMEANS = ["model=kmeans", "init=digit", "optimizer.lr=100"]  # the best constant rate
AUTOENCODER = ["experiment=autoencoder_best", "trainer.max_epochs=2"]
SHORT = ["experiment=autoencoder_best", "trainer.max_epochs=1", "data.train_size=12800"]
EPOCH = [*KMEANS, "trainer.max_epochs=1"]
CURVE = (1, 2, 3, 5, 10)  # epochs
START = """
import os, runpy, sys, threading, time
def exit_at_the_first_step():
    while not hasattr(sys.modules.get("digitlab.models.kmeans"), "MiniBatchKMeans"):
        time.sleep(0.01)
    sys.modules["digitlab.models.kmeans"].MiniBatchKMeans.training_step = lambda *_: os._exit(0)
threading.Thread(target=exit_at_the_first_step, daemon=True).start()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def take_turns(contenders: Mapping[str, Contender], rounds: int) -> dict[str, list[Outcome]]:
    """What each gave in each round."""
    told: dict[str, list[Outcome]] = {name: [] for name in contenders}
    with ExitStack() as stack:
        spawn = multiprocessing.get_context("spawn")
        pools = {name: stack.enter_context(ProcessPoolExecutor(1, spawn)) for name in contenders}
        for _ in range(rounds):
            for name, contender in contenders.items():
                told[name].append(pools[name].submit(contender).result())
                print(".", end="", flush=True, file=sys.stderr)
    return told


def in_turn(contenders: Mapping[str, Contender]) -> dict[str, list[Outcome]]:
    """What each gave, once, all in one process: what they differ by is far more than what one leaves to the next."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(next(iter(contenders.values()))).result()  # the first call also starts threads and fills caches
        return {name: [pool.submit(contender).result()] for name, contender in contenders.items()}


def table(told: Mapping[str, list[Outcome]]) -> pd.DataFrame:
    """A row a contender; the first one is what the others are compared with."""
    first = [one["seconds"] for one in next(iter(told.values()))]
    rows = []
    for name, outcomes in told.items():
        seconds = [one["seconds"] for one in outcomes]
        ratios = sorted(a / b for a, b in zip(first, seconds, strict=True))
        row = {"": name, "seconds": f"{statistics.median(seconds):.2f}"}
        row["digitlab / it"] = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        row["train loss"] = format_loss(outcomes[0]["loss"]) if "loss" in outcomes[0] else ""
        rows.append(row | {"peak MiB": f"{max(one['MiB'] for one in outcomes):.0f}"})
    return pd.DataFrame(rows)


def spans(lines: Mapping[str, list[float]]) -> pd.DataFrame:
    """A row each, with the range where it was measured more than once."""
    rows = []
    for name, seconds in lines.items():
        told = f" ({min(seconds):.2f} to {max(seconds):.2f})" if len(seconds) > 1 else ""
        rows.append({"": name, "seconds": f"{statistics.median(seconds):.2f}{told}"})
    return pd.DataFrame(rows)


# -- what is timed ------------------------------------------------------------------------------------------


def kmeans(root: str) -> dict[str, Contender]:
    """Ten epochs in minibatches of 64."""
    found: dict[str, Contender] = {
        "digitlab": partial(ours, KMEANS, root),
        "digitlab, kmeans_best (its rate decays)": partial(ours, ["experiment=kmeans_best"], root),
        "bare PyTorch loop": partial(peers.bare_kmeans, KMEANS, root),
        "scikit-learn MiniBatchKMeans": partial(peers.scikit_learn, KMEANS, root),
        "the same, stopping early": partial(peers.scikit_learn, KMEANS, root, early_stop=True),
        "Lightning with a DataLoader": partial(peers.tutorial_kmeans, KMEANS, root),
    }
    if importlib.util.find_spec("faiss"):
        found["faiss Kmeans (Lloyd)"] = partial(peers.faiss, root, 10)
    if torch.cuda.is_available():
        found["digitlab, GPU"] = partial(ours, [*KMEANS, "trainer.accelerator=gpu"], root)
    return found


def autoencoder(root: str) -> dict[str, Contender]:
    """Two epochs of autoencoder_best."""
    found: dict[str, Contender] = {
        "digitlab": partial(ours, AUTOENCODER, root),
        "bare PyTorch loop": partial(peers.bare_autoencoder, AUTOENCODER, root),
        "Lightning, torchvision's data set, float32": partial(peers.tutorial_autoencoder, AUTOENCODER, root),
    }
    if torch.cuda.is_available():
        words = [*AUTOENCODER, "trainer.accelerator=gpu"]
        found["digitlab, GPU"] = partial(ours, words, root)
        found["bare PyTorch loop, GPU"] = partial(peers.bare_autoencoder, words, root)
    return found


def formats(root: str) -> dict[str, Contender]:
    """One epoch of autoencoder_best on 12,800 images, by precision and memory format."""
    choices = [(p, c) for p in ("bf16-mixed", "32-true") for c in (True, False)]
    return {
        f"{precision}, {'channels last' if last else 'contiguous'}": partial(
            ours, [*SHORT, f"trainer.precision={precision}", f"model.channels_last={str(last).lower()}"], root
        )
        for precision, last in choices
    }


def growth(root: str) -> dict[str, dict[str, Contender]]:
    """One epoch of k-means: more images (tiled), more clusters, larger minibatches."""
    many = [*EPOCH, "init=sample"]
    return {
        "images": {f"{60_000 * n}": partial(ours, EPOCH, root, copies=n) for n in (1, 2, 4, 8, 16)},
        "clusters": {f"{k}": partial(ours, [*many, f"model.n_clusters={k}"], root) for k in (10, 30, 100, 300, 1000)},
        "batch size": {
            f"{b}": partial(ours, [*EPOCH, f"data.batch_size={b}"], root) for b in (32, 128, 512, 2048, 8192)
        },
    }


def curves(root: str) -> dict[str, dict[str, Contender]]:
    """Time against loss: the same training cut at different lengths."""

    def cut(make: Callable[[list[str]], Contender], *words: str) -> dict[str, Contender]:
        return {str(n): make([*KMEANS, *words, f"trainer.max_epochs={n}"]) for n in CURVE}

    return {
        "digitlab, lr 4.5": cut(lambda words: partial(ours, words, root), "optimizer.lr=4.5"),
        "digitlab, lr 100": cut(lambda words: partial(ours, words, root)),
        "digitlab, kmeans_best": {
            str(n): partial(ours, ["experiment=kmeans_best", f"trainer.max_epochs={n}"], root) for n in CURVE
        },
        "scikit-learn, 64": cut(lambda words: partial(peers.scikit_learn, words, root)),
        "scikit-learn, 1024": cut(lambda words: partial(peers.scikit_learn, words, root), "data.batch_size=1024"),
        "KMeans (Lloyd)": {str(n): partial(peers.lloyd, root, 2 * n) for n in CURVE},
    }


def laboratory(root: str, rounds: int) -> dict[str, list[float]]:
    """What a user waits for beside training, in seconds."""
    env = os.environ | {"DIGITLAB_DATA": str(resolve_path(root))}

    def run(*command: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, *command], cwd=folder, env=env, check=True, capture_output=True)
        return time.perf_counter() - began

    def sweep(name: str, jobs: int, *words: str) -> tuple[float, float]:
        seeds = ",".join(map(str, range(jobs)))
        wall = run(entry, "-m", *KMEANS, *words, f"seed={seeds}", f"hydra.sweep.dir={name}")
        told = [json.loads(path.read_text()) for path in Path(folder, name).glob("*/results.json")]
        return wall, sum(one["fit_seconds"] for one in told)

    entry = str(ROOT / "train.py")
    with tempfile.TemporaryDirectory() as folder:
        lines = {
            "python train.py --cfg job": [run(entry, *KMEANS, "--cfg", "job") for _ in range(rounds)],
            "from the command to the first step": [run("-c", START, entry, *KMEANS) for _ in range(rounds)],
        }
        beside, one, every = [], [], []
        for turn in range(rounds):
            few, many = (sweep(f"{jobs}.{turn}", jobs, "trainer.max_epochs=1") for jobs in (2, 10))
            beside.append((many[0] - many[1] - few[0] + few[1]) / 8)
            one.append(sweep(f"one.{turn}", 6)[0])
            every.append(sweep(f"all.{turn}", 6, "hydra/launcher=joblib")[0])
        lines["each further job of a sweep, beside its training"] = beside
        lines["six runs of k-means in one process"] = one
        lines["the same on all cores (hydra/launcher=joblib)"] = every
    return lines


# -- what is told -------------------------------------------------------------------------------------------


def draw(paths: Mapping[str, Mapping[str, list[Outcome]]], grown: Mapping[str, Mapping[str, list[Outcome]]]) -> Figure:
    """Time against loss of k-means, and how the time of an epoch grows."""
    figure = Figure(figsize=(12, 7), layout="constrained")
    panels = figure.subplots(2, 2).flat
    axes = next(panels)
    for name, points in paths.items():
        outcomes = [min(told, key=lambda one: one["seconds"]) for told in points.values()]
        axes.plot([one["seconds"] for one in outcomes], [one["loss"] for one in outcomes], marker="o", label=name)
    axes.set(xscale="log", xlabel="seconds of training", ylabel="train loss", title="k-means: time against loss")
    axes.set_xticks([0.2, 0.5, 1, 2, 5], ["0.2", "0.5", "1", "2", "5"])
    axes.minorticks_off()
    axes.legend(fontsize=8)
    for (name, points), axes in zip(grown.items(), panels, strict=False):
        values = [int(value) for value in points]
        seconds = [min(one["seconds"] for one in told) for told in points.values()]
        axes.loglog(values, seconds, marker="o")
        axes.set(xlabel=name, ylabel="seconds an epoch", title=f"k-means: {name}")
        axes.set_yticks([])
        axes.set_xticks(values, [f"{value:,}" for value in values])
        axes.minorticks_off()
        for value, second in zip(values, seconds, strict=True):
            axes.annotate(f"{second:.2g}", (value, second), (0, 6), textcoords="offset points", ha="center", fontsize=8)
        axes.margins(0.1, 0.2)
    return figure


@command.ends_in_words
def main() -> None:
    """Time all, or one part."""
    line = command.study_parser(__doc__, "outputs/benchmark", "what is written")
    line.add_argument("--rounds", type=int, default=3, help="times that each is run (default 3)")
    parts = ("kmeans", "autoencoder", "laboratory", "growth")
    line.add_argument("--only", choices=parts, help="leave the other parts out")
    options = line.parse_args()
    if options.rounds < 1:
        line.error(f"--rounds {options.rounds}: must be >= 1")
    source = load(options.root)
    options.out.mkdir(parents=True, exist_ok=True)
    began, root, rounds = time.perf_counter(), options.root, options.rounds
    chosen = [options.only] if options.only else parts
    raw: dict[str, Any] = {"versions": library_versions(), "cores": os.cpu_count(), "machine": platform.machine()}
    pages = []

    def add(title: str, told: Mapping[str, list[Outcome]]) -> None:
        raw[title] = told
        pages.append((title, table(told)))

    if "kmeans" in chosen:
        add("k-means, ten epochs in minibatches of 64", take_turns(kmeans(root), rounds))
    if "autoencoder" in chosen:
        add("autoencoder_best, two epochs", take_turns(autoencoder(root), rounds))
        add("autoencoder_best, 100 minibatches", take_turns(formats(root), rounds))
    if "laboratory" in chosen:
        raw["The laboratory"] = laboratory(root, rounds)
        pages.append(("The laboratory", spans(raw["The laboratory"])))
    if "growth" in chosen:
        raw["curves"] = {name: in_turn(points) for name, points in curves(root).items()}
        raw["growth"] = {name: in_turn(points) for name, points in growth(root).items()}
        with atomic_write(options.out / "benchmark.png") as part:
            draw(raw["curves"], raw["growth"]).savefig(part, dpi=100)
    raw["minutes"] = (time.perf_counter() - began) / 60
    told = [f"{len(source.train.labels):,} images, {os.cpu_count()} cores, {rounds} rounds", ""]
    for title, page in pages:
        told += [f"## {title}", "", page.to_markdown(index=False, disable_numparse=True), ""]
    with atomic_write(options.out / "benchmark.md") as part:
        part.write_text("\n".join(told))
    write_json(options.out / "benchmark.json", raw)
    print("\n" + "\n".join(told) + f"{raw['minutes']:.1f} minutes; {options.out}/benchmark.json, .md and .png")


if __name__ == "__main__":
    main()
