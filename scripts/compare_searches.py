"""Compare searches for an autoencoder: TPE with and without pruning, random search, and a grid.

Each search tries settings on a part of MNIST, so that all of them together take an hour or two, and
knows nothing of the others. The grid is the seed report's (`make search`). Interrupted, the same
command continues. searches.md lists how soon each search beats the mean image, PCA and 0.010, and
what other pruners would have done with the trials that ran to their end; searches.png shows the
best loss so far.
"""

import os
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import command
import optuna
import pandas as pd
from matplotlib.figure import Figure
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
)

import digitlab
from digitlab.formatting import format_loss, format_spread
from digitlab.runs.files import atomic_write

ROOT = Path(__file__).resolve().parents[1]
EPOCHS = 5
PART = ["data.train_size=10000", "data.val_size=2000"]
CONFIRM = "hydra.sweeper.confirm=[]"
SEARCH = ["sweep=search/autoencoder", f"trainer.max_epochs={EPOCHS}", CONFIRM]
UNPRUNED = "hydra.sweeper.pruner=null"
RANDOM = "hydra.sweeper.sampler={_target_: optuna.samplers.RandomSampler}"
# Searches for an autoencoder, to be compared.
SEARCHES = {
    "TPE, pruned": [*SEARCH, *PART],
    "TPE": [*SEARCH, *PART, UNPRUNED],
    "random": [*SEARCH, *PART, UNPRUNED, RANDOM],
}
GRID = "grid q2c"
GRID_SWEEPS = ["learning_rate", "epochs", "batch_size", "weight_decay"]
GRID_SWEEPS += ["channels", "latent", "layers"]
# For the table of pruners alone, on all of MNIST and as long as its YAML says.
KMEANS = "k-means"
PRUNERS = {
    "median": MedianPruner(),
    "best quarter (the default)": PercentilePruner(25.0),
    "successive halving": SuccessiveHalvingPruner(),
    "Hyperband": HyperbandPruner(),
}
GOALS = ("mean image", "PCA", "0.010")


def folder_of(out: Path, name: str, seed: int) -> Path:
    """The folder of a search."""
    return out / re.sub(r"\W+", "_", name) / str(seed)


def run_search(name: str, seed: int, trials: int, root: str, out: Path) -> None:
    """Run a search to its end, with one thread. Trials may fail or diverge.

    Raises:
        ValueError: The search itself failed.
    """
    env = os.environ | {"DIGITLAB_DATA": root, "OMP_NUM_THREADS": "1"}
    for words in make_commands(name, seed, trials, folder_of(out, name, seed)):
        train = [sys.executable, str(ROOT / "train.py"), "-m", *words]
        code = subprocess.run(train, check=False, env=env, stdout=subprocess.DEVNULL).returncode
        if code not in (0, 1):
            raise ValueError(f"{' '.join(words)}: ended with exit code {code}; run it alone")
    print(f"{name}, seed {seed}: done", file=sys.stderr)


def make_commands(name: str, seed: int, trials: int, folder: Path) -> list[list[str]]:
    """Return the overrides of each sweep of a search."""
    place = f"hydra.sweep.dir={folder}"
    if name == GRID:
        sweeps = [[f"sweep=q2c/{sweep}", f"{place}/{sweep}"] for sweep in GRID_SWEEPS]
        return [[*words, *PART, f"seed={seed}"] for words in sweeps]
    if name == KMEANS:
        words = ["sweep=search/kmeans", CONFIRM, UNPRUNED]
    else:
        words = [*SEARCHES[name], f"hydra.sweeper.n_trials={trials}"]
    return [[*words, f"hydra.sweeper.seed={seed}", place]]


def read_search(folder: Path) -> pd.DataFrame:
    """Read the runs of a search in their order, with `minutes` and the `best` val/loss so far."""
    runs = digitlab.runs_table(folder)
    runs = runs[runs.status.isin(("completed", "pruned"))].sort_values("written")
    best = runs["val/loss"].where(runs.status == "completed").cummin().ffill()
    return runs.assign(minutes=runs.seconds.cumsum() / 60, best=best).reset_index(drop=True)


def minutes_to(search: pd.DataFrame, goal: str) -> float | None:
    """The minutes until a search beats a goal; None if it never does."""
    limits = {
        "mean image": search["baseline/mean_image"],
        "PCA": search["baseline/pca"],
        "0.010": pd.Series(0.010, search.index),
    }
    # The latent size of the grid varies, and PCA's loss with it.
    won = search["val/loss"] < limits[goal]
    return float(search.minutes[won].min()) if won.any() else None


def make_row(name: str, searches: Sequence[pd.DataFrame]) -> dict[str, str]:
    """Make a row of the table of searches."""
    best = [float(search.best.min()) for search in searches]
    row = {"": name, "searches": str(len(searches))}
    row["trials"] = ", ".join(str(len(search)) for search in searches)
    row["pruned"] = ", ".join(str((search.status == "pruned").sum()) for search in searches)
    row["minutes"] = ", ".join(f"{search.minutes.max():.1f}" for search in searches)
    spread = f" ± {format_spread(statistics.stdev(best))}" if len(best) > 1 else ""
    row["best val/loss"] = f"{format_loss(statistics.mean(best))}{spread}"
    for goal in GOALS:
        minutes = [minutes_to(search, goal) for search in searches]
        row[f"minutes to {goal}"] = ", ".join("never" if m is None else f"{m:.1f}" for m in minutes)
    return row


def replay(search: pd.DataFrame, pruner: BasePruner) -> tuple[float, float]:
    """Give the trials that ran to their end to a pruner, epoch by epoch.

    Returns:
        The share of the epochs that it would have trained, and the best loss that it would have
        kept divided by the best of all.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(pruner=pruner, study_name="replay")
    trained = total = 0
    kept = []
    for run in search.run:
        losses = pd.read_csv(Path(run) / "metrics.csv")["val/loss"].tolist()
        trial = study.ask()
        total += len(losses)
        for epoch, loss in enumerate(losses, 1):
            trained += 1
            trial.report(loss, epoch)
            if trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(trial, min(losses))
            kept.append(min(losses))
    return trained / total, min(kept) / float(search.best.min())


def make_pruner_row(name: str, searches: Mapping[str, Sequence[pd.DataFrame]]) -> dict[str, str]:
    """Make a row of the table of pruners."""
    row = {"": name}
    for title, runs in searches.items():
        results = [replay(search, PRUNERS[name]) for search in runs]
        for column, values in zip(("epochs", "best loss"), zip(*results, strict=True), strict=True):
            text = ", ".join(f"{value:.2f}" for value in values)
            row[f"{title}: {column}"] = text
    return row


def draw(searches: dict[str, list[pd.DataFrame]]) -> Figure:
    """Draw the best val/loss so far against the minutes of all trials."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for color, (name, runs) in zip(("C0", "C1", "C2", "C3"), searches.items(), strict=True):
        for search in runs:
            label = name if search is runs[0] else None
            axes.step(search.minutes, search.best, where="post", color=color, label=label)
    (first, *_), *_ = searches.values()
    mean_image, pca = (first[f"baseline/{name}"].iloc[0] for name in ("mean_image", "pca"))
    for name, value, style in (("mean image", mean_image, ":"), ("PCA", pca, "--")):
        label = f"{name} {format_loss(value)}"
        axes.axhline(value, color="gray", linestyle=style, label=label)
    axes.set(xlabel="minutes of all trials, one thread", ylabel="best val/loss so far")
    axes.set_yscale("log")
    axes.set_yticks(
        [0.006, 0.01, 0.02, 0.03, 0.05, 0.07], ["0.006", "0.01", "0.02", "0.03", "0.05", "0.07"]
    )
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


@command.exit_on_error
def main() -> None:
    """Run the searches that are not finished, and print the tables."""
    parser = command.make_study_parser(__doc__, "outputs/searches", "the searches and searches.md")
    parser.add_argument("--seeds", type=int, default=3, help="searches of each kind (default 3)")
    parser.add_argument("--trials", type=int, default=30, help="trials of a search (default 30)")
    options = parser.parse_args()
    if min(options.seeds, options.trials) < 1:
        parser.error("--seeds and --trials must be >= 1")
    names, seeds, out = [*SEARCHES, GRID, KMEANS], range(options.seeds), options.out
    run = partial(run_search, trials=options.trials, root=options.root, out=out)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tasks = [pool.submit(run, name, seed) for seed in seeds for name in names]
        try:
            for task in tasks:
                task.result()
        except BaseException:
            # Ctrl-C and a failure end the searches that run; no other starts.
            pool.shutdown(cancel_futures=True)
            raise
    searches = {name: [read_search(folder_of(out, name, seed)) for seed in seeds] for name in names}
    complete = {name: searches[name] for name in ("TPE", "random", KMEANS)}
    del searches[KMEANS]
    tables = [[make_row(name, runs) for name, runs in searches.items()]]
    tables.append([make_pruner_row(name, complete) for name in PRUNERS])
    pages = [pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True) for rows in tables]
    text = "\n\n".join(pages)
    with atomic_write(out / "searches.md") as part:
        part.write_text(f"{text}\n")
    with atomic_write(out / "searches.png") as part:
        draw(searches).savefig(part, dpi=100)
    print(text)


if __name__ == "__main__":
    main()
