"""How fast is training? Ratios against peers that do the same work, measured in turn in the same run."""

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sklearn.cluster import MiniBatchKMeans

from digitlab import train
from digitlab.data import Images, Split, load, scale, split
from digitlab.kmeans import assign, draw_centers, gradient
from digitlab.seeds import Stream, generator

EPOCHS, BATCH = 10, 64


def ours(data: Split, baseline: float) -> float:
    """Seconds of `python train.py model=kmeans init=digit`'s training: Lightning, checkpoints, TensorBoard and all."""
    config: dict[str, Any] = {
        "seed": 0,
        "model": {"name": "kmeans", "n_clusters": 10, "init": {"name": "digit"}, "reassignment_ratio": 0.0},
        "optimizer": {"name": "sgd", "lr": 4.5, "momentum": 0.0, "weight_decay": 0.0},
        "scheduler": {"name": "constant"},
        "data": {"batch_size": BATCH},
        "trainer": {"max_epochs": EPOCHS, "accelerator": "cpu", "devices": 1, "precision": "auto"},
    }
    results: dict[str, Any] = {"fit_seconds": 0.0, "baselines": {"mean_image": baseline}}
    with tempfile.TemporaryDirectory() as folder:
        train.fit(train.build_model(config), data, config, Path(folder), results)
    return float(results["fit_seconds"])


def bare_loop(data: Images) -> float:
    """Seconds of the same update written out in PyTorch: no framework, no logging, no validation."""
    began = time.perf_counter()
    with train.cpu_threads(1), torch.no_grad():
        centers = draw_centers("digit", data, 10, generator(0, Stream.INIT))
        for epoch in range(EPOCHS):
            order = torch.randperm(len(data.labels), generator=generator(0, Stream.ORDER, epoch))
            for rows in order.split(BATCH):
                centers -= 4.5 * gradient(assign(scale(data.images[rows]).flatten(1), centers), centers)
    return time.perf_counter() - began


def scikit_learn(data: Images) -> float:
    """Seconds of MiniBatchKMeans with the same batches and epochs, without its early stop."""
    x = scale(data.images).flatten(1).numpy()
    peer = MiniBatchKMeans(10, batch_size=BATCH, max_iter=EPOCHS, max_no_improvement=None, random_state=0)
    began = time.perf_counter()
    peer.fit(x)
    return time.perf_counter() - began


def main() -> None:
    """Run each in turn, some rounds, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="times that each is run (default 3)")
    parser.add_argument("--root", default=os.environ.get("DIGITLAB_DATA", "data"), help="folder of MNIST's files")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: must be >= 1")
    try:
        data = split(load(options.root), None, 0, None, seed=0)
    except ValueError as mistake:
        parser.error(str(mistake))
    warnings.filterwarnings("ignore", module="lightning")
    baseline = train.mean_image_loss(data)
    contenders: dict[str, Callable[[], float]] = {
        "digitlab": lambda: ours(data, baseline),
        "bare PyTorch loop": lambda: bare_loop(data.train),
        "scikit-learn MiniBatchKMeans": lambda: scikit_learn(data.train),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name, contender in contenders.items():
            seconds[name].append(contender())
    print(f"k-means, {len(data.train.labels):,} images, batch size {BATCH}, {EPOCHS} epochs, {options.rounds} rounds")
    print(f"{'':30}{'median s':>10}{'min':>8}{'max':>8}{'digitlab / it':>16}")
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(seconds["digitlab"], times, strict=True))
        print(f"{name:30}{statistics.median(times):>10.2f}{min(times):>8.2f}{max(times):>8.2f}{ratio:>16.2f}")


if __name__ == "__main__":
    main()
