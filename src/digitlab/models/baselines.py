"""Test losses of trivial models, which any model has to beat.

The loss is the mean squared error over pixels and images, as in the models.
"""

import torch
from torch import Tensor

from digitlab.data.images import Images, Split, scale


def mean_image(data: Split) -> float:
    """The test loss of answering every image with the mean training image."""
    mean, images = _mean(data.train).float(), data.test.images
    # 256 images fit into a CPU's cache.
    parts = [(scale(part) - mean).square().sum(dtype=torch.double) for part in images.split(256)]
    return float(sum(parts)) / images.numel()


def pca(data: Split, n_components: int) -> float:
    """The test loss of PCA with the first `n_components` components of the training images."""
    mean = _mean(data.train).flatten()  # (D,)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.double)
    for images in data.train.images.flatten(1).split(10_000):
        x = scale(images) - mean.float()
        covariance += (x.T @ x).double()
    # eigh returns the eigenvalues in ascending order.
    _, vectors = torch.linalg.eigh(covariance)
    basis = vectors[:, -n_components:].float()  # (D, n_components)
    squared = 0.0
    # A million images as floats at once would take 11 GB.
    for images in data.test.images.flatten(1).split(10_000):
        x = scale(images) - mean.float()
        squared += float((x - x @ basis @ basis.T).square().double().sum())
    return squared / data.test.images.numel()


def _mean(data: Images) -> Tensor:
    """The mean image, float64 (28, 28) in [0, 1]."""
    # Sums of 256 pixels are exact in float32, and three times as fast as in integers.
    total = sum(part.float().sum(0).double() for part in data.images.split(256))
    return torch.as_tensor(total) / (255 * len(data.labels))
