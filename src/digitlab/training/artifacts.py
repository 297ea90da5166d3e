"""What a finished run has to show: its figures, and the files that belong to its model."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from digitlab import figures
from digitlab.data.images import IMAGE_SHAPE, Split, scale
from digitlab.models.autoencoder import Autoencoder
from digitlab.models.kmeans import MiniBatchKMeans
from digitlab.runs.files import atomic_write, write_csv


def kmeans(model: MiniBatchKMeans, data: Split, directory: Path, title: str) -> dict[str, Figure]:
    """The centres as centers.npy and picture, the confusion matrix on the training set as CSV and picture."""
    centers = model.centers.detach().view(-1, *IMAGE_SHAPE).cpu().numpy()
    confusion = model.confusion
    assert confusion is not None, "a model is evaluated before it is shown"
    with atomic_write(directory / "centers.npy") as part:
        np.save(part, centers)
    columns = [f"center {k}" for k in range(len(centers))]
    rows = [[digit, *counts] for digit, counts in enumerate(confusion.tolist())]
    write_csv(directory / "confusion_matrix.csv", ["digit", *columns], rows)
    return {
        "centers": figures.centers(centers, confusion, f"Final centres, {title}"),
        "confusion_matrix": figures.confusion_matrix(confusion, "Training images by digit and centre"),
    }


def autoencoder(model: Autoencoder, data: Split, directory: Path, title: str) -> dict[str, Figure]:
    """The stages as built, held-out digits restored, digits from random z, and the map of the latents."""
    unseen, whose = (data.val, "held-out") if len(data.val.labels) else (data.test, "test")
    some = unseen.take(torch.arange(min(2000, len(unseen.labels))))
    originals = scale(some.images[:30]).numpy()
    restored = model.reconstruct(some.images[:30]).numpy()
    digits = model.generate(20, model.seed).numpy()
    latents, labels = model.encode(some), some.labels
    # What an earlier end of this run left TensorBoard's projector would warn of, and add to.
    shutil.rmtree(directory / "00000" / "latents", ignore_errors=True)
    (directory / "projector_config.pbtxt").unlink(missing_ok=True)
    with SummaryWriter(str(directory)) as writer:
        sprites = scale(some.images[:1000, None]).repeat(1, 3, 1, 1)
        writer.add_embedding(latents[:1000], labels[:1000].tolist(), sprites, tag="latents")
    prior = model.prior_name.replace("_", " ")
    return {
        "shapes": figures.shapes(model.shape_table(), "Tensors from image to latent and back"),
        "reconstructions": figures.reconstructions(
            originals, restored, f"{whose.capitalize()} digits restored, {title}"
        ),
        "generated": figures.image_grid(digits, None, 10, f"Decoded from random z ({prior}), {title}"),
        "latents": figures.latents(latents.numpy(), labels.numpy(), f"Latents of {whose} digits, {title}"),
    }


WRITERS: dict[str, Callable[[Any, Split, Path, str], dict[str, Figure]]] = {
    "kmeans": kmeans,
    "autoencoder": autoencoder,
}
