"""What a finished run has to show: its figures, and the files that belong to its model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from digitlab import figures, runs
from digitlab.data import IMAGE_SHAPE, Split
from digitlab.kmeans import MiniBatchKMeans


def kmeans(model: MiniBatchKMeans, data: Split, directory: Path, title: str) -> dict[str, Figure]:
    """The centres as centers.npy and picture, the confusion matrix on the training set as CSV and picture."""
    centers = model.centers.detach().view(-1, *IMAGE_SHAPE).cpu().numpy()
    confusion = model.confusion(data.train)
    with runs.whole(directory / "centers.npy") as part:
        np.save(part, centers)
    columns = [f"center {k}" for k in range(len(centers))]
    rows = [[digit, *counts] for digit, counts in enumerate(confusion.tolist())]
    runs.write_csv(directory / "confusion_matrix.csv", ["digit", *columns], rows)
    return {
        "centers": figures.centers(centers, confusion, f"Final centres, {title}"),
        "confusion_matrix": figures.confusion_matrix(confusion, "Training images by digit and centre"),
    }


WRITERS: dict[str, Callable[[Any, Split, Path, str], dict[str, Figure]]] = {"kmeans": kmeans}
