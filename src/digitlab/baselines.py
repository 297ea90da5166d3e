"""What any model has to beat, as test losses: the mean squared error over pixels of trivial answers."""

import numpy as np
import torch
from torch import Tensor

from digitlab.data import Images, Split, scale


def mean_image(data: Split) -> float:
    """Always answering with the mean training image."""
    mean, images = _mean(data.train).float(), data.test.images
    parts = [(scale(part) - mean).square().sum(dtype=torch.double) for part in images.split(500)]  # small: cached
    return float(sum(parts)) / images.numel()


def pca(data: Split, n_components: int) -> float:
    """Reconstructing from the training images' first principal components, as many numbers as a latent has."""
    mean = _mean(data.train).flatten()  # (D,)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.double)
    for images in data.train.images.flatten(1).split(10_000):
        x = scale(images) - mean.float()
        covariance += (x.T @ x).double()
    _, vectors = torch.linalg.eigh(covariance)  # ascending
    basis = vectors[:, -n_components:].float()  # (D, n)
    x = scale(data.test.images).flatten(1) - mean.float()
    return float((x - x @ basis @ basis.T).square().double().mean())


def _mean(data: Images) -> Tensor:
    total = torch.from_numpy(data.images.numpy().sum(0, dtype=np.int64))  # five times as fast as torch's
    return total.double() / (255 * len(data.labels))
