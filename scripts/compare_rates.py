"""Which rate, which start? K-means over seeds beside scikit-learn's, with mean and standard deviation (seed report Q1).

Ten epochs in minibatches of 64 on all training images, the rates as conf/sweep/kmeans/learning_rate.yaml found them on
held-out images. Writes rates.md. Seconds are those of training.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import command
import numpy as np
import pandas as pd
import torch
from contenders import floats, plain, trained
from sklearn.cluster import KMeans, MiniBatchKMeans

from digitlab.data.images import Source, Split, split
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
    "init=random, linear from 1000, idle centres revived": ["init=random", *DECAY, "model.reassignment_ratio=0.01"],
}
COLUMNS = ("train/loss", "test/loss", "test/nmi", "test/accuracy", "active_centers", "seconds")
Metrics = dict[str, float]


def ours(words: list[str], seed: int, source: Source, data: Split) -> Metrics:
    """A run of train.py without its figures."""
    wanted = plain(["model=kmeans", *words, f"seed={seed}"])
    with cpu_threads(1):
        model, seconds = trained(wanted, data)
        return model.evaluate(source, data) | {"seconds": seconds}


def theirs(make: Callable[[int], Any], seed: int, data: Split) -> Metrics:
    """An estimator of scikit-learn's, judged as ours are."""
    x, test = (floats(part) for part in (data.train, data.test))
    peer = make(seed)
    began = time.perf_counter()
    peer.fit(x)
    told = {"seconds": time.perf_counter() - began, "train/loss": -peer.score(x) / x.size}
    told |= {"test/loss": -peer.score(test) / test.size, "active_centers": len(set(peer.labels_))}
    scores = agreement(data.test.labels, torch.from_numpy(peer.predict(test)).long(), 10)
    return told | {f"test/{name}": value for name, value in scores.items()}


def row(name: str, over_seeds: list[Metrics]) -> dict[str, str]:
    """Mean and standard deviation of each column."""
    told = {"": name, "seeds": str(len(over_seeds))}
    for column in COLUMNS:
        told[column] = mean_and_deviation(column, [metrics[column] for metrics in over_seeds])
    return told


def mean_and_deviation(column: str, values: list[float]) -> str:
    """Both in as many places as the column has; those of small losses in significant digits."""
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=len(values) > 1))
    if column.endswith("/loss") and mean < SMALL:
        return f"{format_loss(mean)} ± {format_spread(deviation)}"
    digits = {"seconds": 1, "active_centers": 1, "test/nmi": 3, "test/accuracy": 3}.get(column, 4)
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"


@command.ends_in_words
def main() -> None:
    """Run all of them and print the table."""
    line = command.study_parser(__doc__, "outputs/rates", "rates.md")
    line.add_argument("--seeds", type=int, default=10, help="how many seeds, from 0 (default 10)")
    options = line.parse_args()
    if options.seeds < 1:
        line.error(f"--seeds {options.seeds}: must be >= 1")
    source = load(options.root)
    options.out.mkdir(parents=True, exist_ok=True)
    data, seeds = split(source, None, 0, None, seed=0), range(options.seeds)
    peers: dict[str, tuple[Callable[[int], Any], range]] = {
        "scikit-learn MiniBatchKMeans, 64": (
            lambda seed: MiniBatchKMeans(
                10, batch_size=64, max_iter=10, n_init=1, max_no_improvement=None, random_state=seed
            ),
            seeds,
        ),
        "scikit-learn KMeans, n_init=1": (lambda seed: KMeans(10, n_init=1, random_state=seed), seeds),
        "scikit-learn KMeans, n_init=20": (lambda seed: KMeans(10, n_init=20, random_state=seed), seeds[:3]),
    }
    rows = []
    for name, words in OURS.items():
        rows.append(row(name, [ours(words, seed, source, data) for seed in seeds]))
        print(rows[-1], file=sys.stderr)
    for name, (make, some) in peers.items():
        rows.append(row(name, [theirs(make, seed, data) for seed in some]))
        print(rows[-1], file=sys.stderr)
    page = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
    with atomic_write(options.out / "rates.md") as part:
        part.write_text(page + "\n")
    print(page)


if __name__ == "__main__":
    main()
