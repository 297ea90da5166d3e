"""Compare learning rates and starts of k-means over seeds, with scikit-learn (seed report Q1).

Each run takes ten epochs in minibatches of 64 on all training images. The rates were chosen on
held-out images in conf/sweep/kmeans/learning_rate.yaml. rates.md lists mean and standard deviation;
seconds are those of training.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import command
import numpy as np
import pandas as pd
import torch
from contenders import plain, to_array, train
from sklearn.cluster import KMeans, MiniBatchKMeans

from digitlab.data.images import Split, split
from digitlab.data.mnist import load
from digitlab.formatting import SMALL, format_loss, format_spread
from digitlab.models.kmeans import agreement
from digitlab.runs.files import atomic_write
from digitlab.runtime.threads import cpu_threads

DECAY = ["optimizer.lr=1000", "scheduler=linear"]
OURS = {
    "init=digit, fixed, lr 4.5": ["init=digit"],
    "init=digit, fixed, lr 100": ["init=digit", "optimizer.lr=100"],
    "init=digit, linear from 1000": ["init=digit", *DECAY],
    "init=digit, cosine from 1000": ["init=digit", "optimizer.lr=1000", "scheduler=cosine"],
    "init=digit, 1/n_k": ["init=digit", "optimizer=inverse_count"],
    "init=digit, sqrt(m_k/B)": ["init=digit", "optimizer=sqrt_share"],
    "init=sample, linear from 1000 (kmeans_best)": ["init=sample", *DECAY],
    "init=kmeans++, linear from 1000": ["init=kmeans++", *DECAY],
    "init=random, linear from 1000": ["init=random", *DECAY],
    "init=random, linear from 1000, idle centres revived": [
        "init=random",
        *DECAY,
        "model.reassignment_ratio=0.01",
    ],
}
COLUMNS = ("train/loss", "test/loss", "test/nmi", "test/accuracy", "active_centers", "seconds")
PLACES = {"seconds": 1, "active_centers": 1, "test/nmi": 3, "test/accuracy": 3}
Metrics = dict[str, float]


def measure_ours(words: list[str], seed: int, data: Split) -> Metrics:
    """Train as train.py does and return the metrics."""
    wanted = plain(["model=kmeans", *words, f"seed={seed}"])
    with cpu_threads(1):
        model, seconds = train(wanted, data)
        return model.evaluate(data) | {"seconds": seconds}


def measure_sklearn(make: Callable[[int], Any], seed: int, data: Split) -> Metrics:
    """Train an estimator of scikit-learn and return the same metrics."""
    x, test = (to_array(part) for part in (data.train, data.test))
    estimator = make(seed)
    start = time.perf_counter()
    estimator.fit(x)
    metrics = {"seconds": time.perf_counter() - start}
    metrics["train/loss"] = -estimator.score(x) / x.size
    metrics["test/loss"] = -estimator.score(test) / test.size
    metrics["active_centers"] = len(set(estimator.labels_))
    labels = torch.from_numpy(estimator.predict(test)).long()
    scores = agreement(data.test.labels, labels, 10)
    return metrics | {f"test/{name}": value for name, value in scores.items()}


def make_row(name: str, over_seeds: list[Metrics]) -> dict[str, str]:
    """Make a row with mean and standard deviation of each column."""
    row = {"": name, "seeds": str(len(over_seeds))}
    for column in COLUMNS:
        row[column] = format_mean_and_std(column, [metrics[column] for metrics in over_seeds])
    return row


def format_mean_and_std(column: str, values: list[float]) -> str:
    """Format both with the decimal places of the column, small losses with significant digits."""
    mean, std = float(np.mean(values)), float(np.std(values, ddof=len(values) > 1))
    if column.endswith("/loss") and mean < SMALL:
        return f"{format_loss(mean)} ± {format_spread(std)}"
    places = PLACES.get(column, 4)
    return f"{mean:.{places}f} ± {std:.{places}f}"


def make_minibatch(seed: int) -> MiniBatchKMeans:
    """Return minibatch k-means with the same batches and epochs as ours, without early stopping."""
    return MiniBatchKMeans(
        10, batch_size=64, max_iter=10, n_init=1, max_no_improvement=None, random_state=seed
    )


@command.exit_on_error
def main() -> None:
    """Run all configurations and print the table."""
    parser = command.make_study_parser(__doc__, "outputs/rates", "rates.md")
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds (default 10)")
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error(f"--seeds {options.seeds}: must be >= 1")
    source = load(options.root)
    options.out.mkdir(parents=True, exist_ok=True)
    data, seeds = split(source, None, 0, None, seed=0), range(options.seeds)
    estimators: dict[str, tuple[Callable[[int], Any], range]] = {
        "scikit-learn MiniBatchKMeans, 64": (make_minibatch, seeds),
        "scikit-learn KMeans, n_init=1": (
            lambda seed: KMeans(10, n_init=1, random_state=seed),
            seeds,
        ),
        "scikit-learn KMeans, n_init=20": (
            lambda seed: KMeans(10, n_init=20, random_state=seed),
            seeds[:3],
        ),
    }
    rows = []
    for name, words in OURS.items():
        rows.append(make_row(name, [measure_ours(words, seed, data) for seed in seeds]))
        print(rows[-1], file=sys.stderr)
    for name, (make, some) in estimators.items():
        rows.append(make_row(name, [measure_sklearn(make, seed, data) for seed in some]))
        print(rows[-1], file=sys.stderr)
    page = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
    with atomic_write(options.out / "rates.md") as part:
        part.write_text(page + "\n")
    print(page)


if __name__ == "__main__":
    main()
