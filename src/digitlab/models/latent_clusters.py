"""Whether latents keep the classes apart better than pixels do, by k-means on both.

The clusters have no part in a run; scripts/evaluate.py compares them on request.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from digitlab.data.images import Split, scale
from digitlab.models.kmeans import agreement

# Each start of k-means ends in other clusters.
STARTS = 10
# Training images that the clusters are fitted to, at most; fewer if they are larger than 28 x 28.
FIT_SIZE = 10_000
SCORES = ("accuracy", "purity", "nmi", "ari")


class Clustering(NamedTuple):
    """Scores of the clusters of one space."""

    space: str
    dimensions: int
    # The mean of each of SCORES over the starts, and the standard deviation.
    means: dict[str, float]
    deviations: dict[str, float]


def compare_clusters(encode: Callable[[Any], Tensor], data: Split) -> list[Clustering]:
    """Cluster pixels, and latents, into as many clusters as there are classes.

    scikit-learn's k-means is fitted to training images; the scores of `agreement` are those of the
    test images.

    Args:
        encode: Computes latents (N, Z) of images.
        data: The split.
    """
    from sklearn.cluster import KMeans

    k, pixels = len(data.classes), data.train.images[0].numel()
    size = max(k, min(FIT_SIZE, FIT_SIZE * 784 // pixels))
    train = data.train.images[:size]
    spaces: dict[str, Callable[[Tensor], Tensor]] = {
        "pixels": lambda images: scale(images).flatten(1),
        "latents": encode,
    }
    clusterings = []
    for name, embed in spaces.items():
        points = embed(train).numpy()
        fitted = [KMeans(k, n_init=1, random_state=start).fit(points) for start in range(STARTS)]
        labels = []
        for part in data.test.images.split(size):
            x = embed(part).numpy()
            labels.append(np.stack([kmeans.predict(x) for kmeans in fitted]))
        clusters = torch.from_numpy(np.concatenate(labels, axis=1)).long()  # (STARTS, N)
        scores = [agreement(data.test.labels, row, k, k) for row in clusters]
        columns = {key: np.array([score[key] for score in scores]) for key in SCORES}
        means = {key: float(values.mean()) for key, values in columns.items()}
        deviations = {key: float(values.std(ddof=1)) for key, values in columns.items()}
        clusterings.append(Clustering(name, points.shape[1], means, deviations))
    return clusterings
