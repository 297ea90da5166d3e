"""What any model has to beat, as test losses: the mean squared error over pixels of trivial answers."""

import torch
from torch import Tensor

from digitlab.data.images import Images, Split, scale


def mean_image(data: Split) -> float:
    """Always answering with the mean training image."""
    mean, images = _mean(data.train).float(), data.test.images
    parts = [(scale(part) - mean).square().sum(dtype=torch.double) for part in images.split(256)]  # small: cached
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
    squared = 0.0
    for images in data.test.images.flatten(1).split(10_000):  # a million at once would take 11 GB
        x = scale(images) - mean.float()
        squared += float((x - x @ basis @ basis.T).square().double().sum())
    return squared / data.test.images.numel()


def _mean(data: Images) -> Tensor:
    # Sums of 256 pixels are exact in float32, and three times as fast as in integers.
    total = sum(part.float().sum(0).double() for part in data.images.split(256))
    return torch.as_tensor(total) / (255 * len(data.labels))
