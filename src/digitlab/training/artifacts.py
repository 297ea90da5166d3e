"""The figures and the extra files of a completed run, by model."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from digitlab import figures
from digitlab.data.images import Split, kind_of_class, kind_of_image, scale, to_array
from digitlab.models.autoencoder import Autoencoder
from digitlab.models.kmeans import MiniBatchKMeans
from digitlab.runs.files import atomic_write, write_csv
from digitlab.training.event_files import open_writer


def write_kmeans(
    model: MiniBatchKMeans, data: Split, directory: Path, title: str
) -> dict[str, Figure]:
    """Write centers.npy and confusion_matrix.csv (of the training images); return their figures."""
    centers = to_array(model.center_images())
    kind = kind_of_class(data.classes)
    confusion = model.confusion
    assert confusion is not None, "evaluate must run first"
    with atomic_write(directory / "centers.npy") as part:
        np.save(part, centers)
    columns = [f"center {k}" for k in range(len(centers))]
    rows = []
    for name, counts in zip(data.classes, confusion.tolist(), strict=True):
        rows.append([name, *counts])
    write_csv(directory / "confusion_matrix.csv", [kind, *columns], rows)
    return {
        "centers": figures.centers(centers, confusion, f"Final centres, {title}", data.classes),
        "confusion_matrix": figures.confusion_matrix(
            confusion, f"Training images by {kind} and centre", data.classes
        ),
    }


def write_autoencoder(
    model: Autoencoder, data: Split, directory: Path, title: str
) -> dict[str, Figure]:
    """Write the latents for TensorBoard's projector; return the model's figures.

    The figures show the tensor shapes of the stages, reconstructions and latents of held-out (else
    test) digits, and digits decoded from random z.
    """
    unseen, part = data.test, "test"
    if len(data.val.labels):
        unseen, part = data.val, "held-out"
    sample = unseen.take(torch.arange(min(2000, len(unseen.labels))))
    originals = to_array(scale(sample.images[:30]))
    restored = to_array(model.reconstruct(sample.images[:30]))
    digits = to_array(model.generate(20, model.seed))
    latents, labels = model.encode(sample), sample.labels
    # The projector would add to the files of an earlier evaluation of this run, with a warning.
    shutil.rmtree(directory / "00000" / "latents", ignore_errors=True)
    (directory / "projector_config.pbtxt").unlink(missing_ok=True)
    with open_writer(directory) as writer:
        names = [data.classes[label] for label in labels[:1000].tolist()]
        sprites = scale(sample.images[:1000]).expand(-1, 3, -1, -1)
        writer.add_embedding(latents[:1000], names, sprites, tag="latents")
    prior, kind = model.prior_name.replace("_", " "), kind_of_image(data.classes)
    return {
        "shapes": figures.shapes(model.shape_table(), "Tensors from image to latent and back"),
        "reconstructions": figures.reconstructions(
            originals, restored, f"{part.capitalize()} {kind} restored, {title}"
        ),
        "generated": figures.image_grid(
            digits, None, 10, f"Decoded from random z ({prior}), {title}"
        ),
        "latents": figures.latents(
            latents.numpy(), labels.numpy(), f"Latents of {part} {kind}, {title}", data.classes
        ),
    }


WRITERS: dict[str, Callable[[Any, Split, Path, str], dict[str, Figure]]] = {
    "kmeans": write_kmeans,
    "autoencoder": write_autoencoder,
}
