"""Measure how fast digitlab is: against peers, from command to first step, and as sizes grow.

Each contender runs in its own process and they take turns, so that a noisy machine disturbs all of
them alike. A ratio is digitlab's time divided by the peer's: the median over the rounds with the
smallest and the largest ratio in brackets. The curves of the figure are measured once. Writes
benchmark.json, .md and .png.
"""

import importlib.util
import json
import multiprocessing
import os
import platform
import shutil
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
from contenders import Contender, Outcome, run_digitlab
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from digitlab.data.mnist import load
from digitlab.formatting import format_loss
from digitlab.runs.files import atomic_write, resolve_path, write_json
from digitlab.runs.provenance import library_versions
from digitlab.runtime.devices import has_native_bfloat16

ROOT = Path(__file__).resolve().parents[1]
KMEANS = ["model=kmeans", "init=digit", "optimizer.lr=100"]  # the best constant rate
ADAMW = ["optimizer=adamw", "optimizer.lr=0.005", "optimizer.beta2=0.99", "scheduler=one_cycle"]
AUTOENCODER = ["experiment=autoencoder_best", "trainer.max_epochs=2"]
SHORT = ["experiment=autoencoder_best", "trainer.max_epochs=1", "data.train_size=12800"]
# Recipes for an autoencoder of latent size 16, each with the epochs that it trains for.
RECIPES = {
    "autoencoder_fast": (6, ["experiment=autoencoder_fast"]),
    "autoencoder_best": (12, ["experiment=autoencoder_best"]),
    "autoencoder_best with AdamW": (12, ["experiment=autoencoder_best", *ADAMW]),
    "AdamW and three plain convolutions": (
        22,
        ["experiment=autoencoder_best", *ADAMW, "model.channels=[32,64,64]", "model.hidden=256"],
    ),
}
EPOCH = [*KMEANS, "trainer.max_epochs=1"]
CURVE = (1, 2, 3, 5, 10)  # epochs
PARTS = ("kmeans", "autoencoder", "recipes", "laboratory", "growth")
JOBS = 1000
EXIT_AT_FIRST_STEP = """
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
    """Run each contender once per round, in its own process."""
    outcomes: dict[str, list[Outcome]] = {name: [] for name in contenders}
    with ExitStack() as stack:
        spawn = multiprocessing.get_context("spawn")
        pools = {name: stack.enter_context(ProcessPoolExecutor(1, spawn)) for name in contenders}
        for _ in range(rounds):
            for name, contender in contenders.items():
                outcomes[name].append(pools[name].submit(contender).result())
                print(".", end="", flush=True, file=sys.stderr)
    return outcomes


def run_once(contenders: Mapping[str, Contender]) -> dict[str, list[Outcome]]:
    """Run each contender once, all in one process.

    Their differences are far larger than the influence of one on the next.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        # The first call also starts threads and fills caches.
        pool.submit(next(iter(contenders.values()))).result()
        return {name: [pool.submit(contender).result()] for name, contender in contenders.items()}


def make_table(results: Mapping[str, list[Outcome]]) -> pd.DataFrame:
    """Make a table with one row per contender, each compared with the first one."""
    first = [outcome["seconds"] for outcome in next(iter(results.values()))]
    rows = []
    for name, outcomes in results.items():
        seconds = [outcome["seconds"] for outcome in outcomes]
        ratios = sorted(a / b for a, b in zip(first, seconds, strict=True))
        ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        row = {"": name, "seconds": f"{statistics.median(seconds):.2f}", "digitlab / peer": ratio}
        row["train loss"] = format_loss(outcomes[0]["loss"]) if "loss" in outcomes[0] else ""
        row["peak MiB"] = f"{max(outcome['MiB'] for outcome in outcomes):.0f}"
        rows.append(row)
    return pd.DataFrame(rows)


def make_duration_table(durations: Mapping[str, list[float]]) -> pd.DataFrame:
    """Make a table of median durations, with the range of those measured more than once."""
    rows = []
    for name, seconds in durations.items():
        text = f"{statistics.median(seconds):.2f}"
        if len(seconds) > 1:
            text += f" ({min(seconds):.2f} to {max(seconds):.2f})"
        rows.append({"": name, "seconds": text})
    return pd.DataFrame(rows)


# -- contenders ------------------------------------------------------------------------------------


def make_kmeans_contenders(root: str) -> dict[str, Contender]:
    """Return the contenders for ten epochs in minibatches of 64."""
    contenders: dict[str, Contender] = {
        "digitlab": partial(run_digitlab, KMEANS, root),
        "digitlab, kmeans_best (its rate decays)": partial(
            run_digitlab, ["experiment=kmeans_best"], root
        ),
        "plain PyTorch loop": partial(peers.run_pytorch_kmeans, KMEANS, root),
        "scikit-learn MiniBatchKMeans": partial(peers.run_sklearn_minibatch, KMEANS, root),
        "the same, stopping early": partial(
            peers.run_sklearn_minibatch, KMEANS, root, early_stop=True
        ),
        "Lightning with a DataLoader": partial(peers.run_lightning_kmeans, KMEANS, root),
    }
    if importlib.util.find_spec("faiss"):
        contenders["faiss Kmeans (Lloyd)"] = partial(peers.run_faiss, root, 10)
    if torch.cuda.is_available():
        words = [*KMEANS, "trainer.accelerator=gpu"]
        contenders["digitlab, GPU"] = partial(run_digitlab, words, root)
    return contenders


def make_autoencoder_contenders(root: str) -> dict[str, Contender]:
    """Return the contenders for two epochs of autoencoder_best."""
    contenders: dict[str, Contender] = {
        "digitlab": partial(run_digitlab, AUTOENCODER, root),
        "plain PyTorch loop": partial(peers.run_pytorch_autoencoder, AUTOENCODER, root),
        "Lightning, torchvision's data set, float32": partial(
            peers.run_lightning_autoencoder, AUTOENCODER, root
        ),
    }
    if torch.cuda.is_available():
        words = [*AUTOENCODER, "trainer.accelerator=gpu"]
        contenders["digitlab, GPU"] = partial(run_digitlab, words, root)
        contenders["plain PyTorch loop, GPU"] = partial(peers.run_pytorch_autoencoder, words, root)
    return contenders


def make_format_contenders(root: str) -> dict[str, Contender]:
    """Return one epoch of autoencoder_best on 12,800 images, by precision and memory format."""
    contenders: dict[str, Contender] = {}
    # Emulated, bfloat16 takes minutes and tells nothing.
    precisions = ["bf16-mixed"] if has_native_bfloat16("cpu") else []
    for precision in (*precisions, "32-true"):
        for name, value in (("channels last", "true"), ("contiguous", "false")):
            words = [f"trainer.precision={precision}", f"model.channels_last={value}"]
            contender = partial(run_digitlab, [*SHORT, *words], root)
            contenders[f"{precision}, {name}"] = contender
    return contenders


def make_recipe_contenders(root: str) -> dict[str, Contender]:
    """Return 200 minibatches of each recipe."""
    short = ["trainer.max_epochs=1", "data.train_size=25600"]
    return {
        name: partial(run_digitlab, [*words, *short], root) for name, (_, words) in RECIPES.items()
    }


def make_recipe_table(results: Mapping[str, list[Outcome]]) -> pd.DataFrame:
    """Make a table of the time of an epoch and of all, each compared with the last recipe's."""
    *_, (last, _) = RECIPES.values()
    reference = [outcome["seconds"] for outcome in results[[*RECIPES][-1]]]
    rows = []
    for name, (epochs, _) in RECIPES.items():
        seconds = [outcome["seconds"] for outcome in results[name]]
        ratios = sorted(a / b for a, b in zip(seconds, reference, strict=True))
        row = {"": name, "epochs": str(epochs)}
        for title, factor in (("an epoch", 1.0), ("all of its training", epochs / last)):
            low, middle, high = (
                value * factor for value in (ratios[0], statistics.median(ratios), ratios[-1])
            )
            row[title] = f"{middle:.2f} ({low:.2f} to {high:.2f})"
        rows.append(row)
    return pd.DataFrame(rows)


def make_growth_contenders(root: str) -> dict[str, dict[str, Contender]]:
    """Return one epoch of k-means with more (tiled) images, more clusters, larger minibatches."""

    def run(*words: str, copies: int = 1) -> Contender:
        return partial(run_digitlab, [*EPOCH, *words], root, copies=copies)

    return {
        "images": {f"{60_000 * n}": run(copies=n) for n in (1, 2, 4, 8, 16)},
        "clusters": {
            f"{k}": run("init=sample", f"model.n_clusters={k}") for k in (10, 30, 100, 300, 1000)
        },
        "batch size": {f"{b}": run(f"data.batch_size={b}") for b in (32, 128, 512, 2048, 8192)},
    }


def make_curve_contenders(root: str) -> dict[str, dict[str, Contender]]:
    """Return the same trainings with different numbers of epochs: time against loss."""

    def cut(run: Callable[..., Outcome], *words: str) -> dict[str, Contender]:
        return {str(n): partial(run, [*words, f"trainer.max_epochs={n}"], root) for n in CURVE}

    sklearn = peers.run_sklearn_minibatch
    return {
        "digitlab, lr 4.5": cut(run_digitlab, *KMEANS, "optimizer.lr=4.5"),
        "digitlab, lr 100": cut(run_digitlab, *KMEANS),
        "digitlab, kmeans_best": cut(run_digitlab, "experiment=kmeans_best"),
        "scikit-learn, 64": cut(sklearn, *KMEANS),
        "scikit-learn, 1024": cut(sklearn, *KMEANS, "data.batch_size=1024"),
        "KMeans (Lloyd)": {str(n): partial(peers.run_lloyd, root, 2 * n) for n in CURVE},
    }


def time_laboratory(root: str, rounds: int) -> dict[str, list[float]]:
    """Time what a user waits for in addition to training, in seconds."""
    env = os.environ | {"DIGITLAB_DATA": str(resolve_path(root))}
    train = str(ROOT / "train.py")

    def run(*command: str) -> float:
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, *command], cwd=folder, env=env, check=True, capture_output=True
        )
        return time.perf_counter() - start

    def sweep(name: str, jobs: int, *words: str) -> tuple[float, float]:
        seeds = ",".join(map(str, range(jobs)))
        wall = run(train, "-m", *KMEANS, *words, f"seed={seeds}", f"hydra.sweep.dir={name}")
        paths = Path(folder, name).glob("*/results.json")
        return wall, sum(json.loads(path.read_text())["fit_seconds"] for path in paths)

    with tempfile.TemporaryDirectory() as folder:
        durations: dict[str, list[float]] = {
            "python train.py --cfg job": [
                run(train, *KMEANS, "--cfg", "job") for _ in range(rounds)
            ],
            "from the command to the first step": [
                run("-c", EXIT_AT_FIRST_STEP, train, *KMEANS) for _ in range(rounds)
            ],
        }
        per_job, sequential, parallel = [], [], []
        for turn in range(rounds):
            few = sweep(f"2.{turn}", 2, "trainer.max_epochs=1")
            many = sweep(f"10.{turn}", 10, "trainer.max_epochs=1")
            per_job.append((many[0] - many[1] - few[0] + few[1]) / 8)
            sequential.append(sweep(f"one.{turn}", 6)[0])
            parallel.append(sweep(f"all.{turn}", 6, "hydra/launcher=joblib")[0])
        durations["each further job of a sweep, in addition to its training"] = per_job
        durations["six runs of k-means in one process"] = sequential
        durations["the same on all cores (hydra/launcher=joblib)"] = parallel
        durations |= time_large_sweeps(run, Path(folder, "10.0"), Path(folder, "copies"))
    return durations


def time_large_sweeps(
    run: Callable[..., float], sweep: Path, folder: Path
) -> dict[str, list[float]]:
    """Time the planning of a sweep of 1,000 jobs, and a report on as many copies of runs.

    Args:
        run: Runs a command of Python and returns its seconds.
        sweep: A sweep with finished runs.
        folder: The copies are made here.
    """
    runs = [path.parent for path in sorted(sweep.glob("*/results.json"))]
    for number in range(JOBS):
        original = runs[number % len(runs)]
        copy = folder / f"{number:012d}"
        copy.mkdir(parents=True)
        for name in ("metrics.csv", "train.log"):
            shutil.copy(original / name, copy)
        results = json.loads((original / "results.json").read_text())
        results["run_id"], results["config"]["seed"] = copy.name, number // 10
        results["config"]["optimizer"]["lr"] = 10.0 * (1 + number % 10)
        (copy / "results.json").write_text(json.dumps(results))
    seeds = f"seed=range({JOBS})"
    plan = run(str(ROOT / "train.py"), "-m", *KMEANS, seeds, "dry_run=true")
    report = run(str(ROOT / "scripts" / "report.py"), str(folder))
    return {f"planning a sweep of {JOBS:,} jobs": [plan], f"a report on {JOBS:,} runs": [report]}


# -- figure ----------------------------------------------------------------------------------------


def draw(
    curves: Mapping[str, Mapping[str, list[Outcome]]],
    growth: Mapping[str, Mapping[str, list[Outcome]]],
) -> Figure:
    """Draw the loss of k-means against time, and the time of an epoch against sizes."""
    figure = Figure(figsize=(12, 7), layout="constrained")
    panels = figure.subplots(2, 2).flat
    draw_curves(next(panels), curves)
    for (name, points), axes in zip(growth.items(), panels, strict=False):
        draw_growth(axes, name, points)
    return figure


def draw_curves(axes: Axes, curves: Mapping[str, Mapping[str, list[Outcome]]]) -> None:
    """Draw the loss against the time of training."""
    for name, points in curves.items():
        fastest = [
            min(outcomes, key=lambda outcome: outcome["seconds"]) for outcomes in points.values()
        ]
        seconds = [outcome["seconds"] for outcome in fastest]
        axes.plot(seconds, [outcome["loss"] for outcome in fastest], marker="o", label=name)
    axes.set(xscale="log", xlabel="seconds of training", ylabel="train loss")
    axes.set_title("k-means: time against loss")
    axes.set_xticks([0.2, 0.5, 1, 2, 5], ["0.2", "0.5", "1", "2", "5"])
    axes.minorticks_off()
    axes.legend(fontsize=8)


def draw_growth(axes: Axes, name: str, points: Mapping[str, list[Outcome]]) -> None:
    """Draw the time of an epoch against a size."""
    values = [int(value) for value in points]
    seconds = [min(outcome["seconds"] for outcome in outcomes) for outcomes in points.values()]
    axes.loglog(values, seconds, marker="o")
    axes.set(xlabel=name, ylabel="seconds per epoch", title=f"k-means: {name}")
    axes.set_yticks([])
    axes.set_xticks(values, [f"{value:,}" for value in values])
    axes.minorticks_off()
    for point in zip(values, seconds, strict=True):
        text = f"{point[1]:.2g}"
        axes.annotate(text, point, (0, 6), textcoords="offset points", ha="center", fontsize=8)
    axes.margins(0.1, 0.2)


@command.exit_on_error
def main() -> None:
    """Run all parts, or one."""
    parser = command.make_study_parser(__doc__, "outputs/benchmark", "the results")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds (default 3)")
    parser.add_argument("--only", choices=PARTS, help="run only this part")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: must be >= 1")
    source = load(options.root)
    options.out.mkdir(parents=True, exist_ok=True)
    start, root, rounds = time.perf_counter(), options.root, options.rounds
    parts = [options.only] if options.only else PARTS
    raw: dict[str, Any] = {
        "versions": library_versions(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
    }
    tables = {}

    def compete(title: str, contenders: Mapping[str, Contender]) -> None:
        raw[title] = take_turns(contenders, rounds)
        tables[title] = make_table(raw[title])

    if "kmeans" in parts:
        compete("k-means, ten epochs in minibatches of 64", make_kmeans_contenders(root))
    if "autoencoder" in parts:
        compete("autoencoder_best, two epochs", make_autoencoder_contenders(root))
        compete("autoencoder_best, 100 minibatches", make_format_contenders(root))
    if "recipes" in parts:
        title = "Recipes for an autoencoder: time, as ratios to the last one"
        raw[title] = take_turns(make_recipe_contenders(root), rounds)
        tables[title] = make_recipe_table(raw[title])
    if "laboratory" in parts:
        raw["The laboratory"] = time_laboratory(root, rounds)
        tables["The laboratory"] = make_duration_table(raw["The laboratory"])
    if "growth" in parts:
        curves, growth = make_curve_contenders(root), make_growth_contenders(root)
        raw["curves"] = {name: run_once(points) for name, points in curves.items()}
        raw["growth"] = {name: run_once(points) for name, points in growth.items()}
        with atomic_write(options.out / "benchmark.png") as part:
            draw(raw["curves"], raw["growth"]).savefig(part, dpi=100)
    raw["minutes"] = (time.perf_counter() - start) / 60
    images = len(source.train.labels)
    page = [f"{images:,} images, {os.cpu_count()} cores, {rounds} rounds", ""]
    for title, table in tables.items():
        page += [f"## {title}", "", table.to_markdown(index=False, disable_numparse=True), ""]
    text = "\n".join(page)
    with atomic_write(options.out / "benchmark.md") as part:
        part.write_text(text)
    write_json(options.out / "benchmark.json", raw)
    print(f"\n{text}{raw['minutes']:.1f} minutes; {options.out}/benchmark.json, .md and .png")


if __name__ == "__main__":
    main()
