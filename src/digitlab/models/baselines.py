"""Test losses of trivial models, which any model has to beat.

The loss is the mean squared error over pixels and images, as in the models.
"""

import torch
from torch import Tensor

from digitlab.data.images import Images, Split, scale

# Up to this number of pixels PCA is exact; the time grows with its cube.
EXACT = 4096


def mean_image(data: Split) -> float:
    """The test loss of answering every image with the mean training image."""
    mean, images = _mean(data.train).float(), data.test.images
    # 256 images fit into a CPU's cache.
    parts = [(scale(part) - mean).square().sum(dtype=torch.double) for part in images.split(256)]
    return float(sum(parts)) / images.numel()


def mean_image_losses(train: Images, images: Tensor) -> Tensor:
    """The loss of each image (N, C, H, W) if the mean training image answers; float64 (N,)."""
    mean = _mean(train).float()
    parts = [
        (scale(part) - mean).square().flatten(1).mean(1, dtype=torch.double)
        for part in images.split(256)
    ]
    return torch.cat(parts)


def pca(data: Split, n_components: int) -> float:
    """The test loss of PCA with the first `n_components` components of the training images."""
    mean = _mean(data.train).flatten()  # (D,)
    if len(mean) > EXACT:
        basis = _leading_directions(data.train, mean, n_components)
    else:
        covariance = torch.zeros(len(mean), len(mean), dtype=torch.double)
        for images in data.train.images.flatten(1).split(10_000):
            x = scale(images) - mean.float()
            covariance += (x.T @ x).double()
        # eigh returns the eigenvalues in ascending order.
        _, vectors = torch.linalg.eigh(covariance)
        basis = vectors[:, -n_components:].float()  # (D, n_components)
    squared = 0.0
    # A million images as floats at once would take 11 GB.
    for images in data.test.images.flatten(1).split(_part_size(data.test)):
        x = scale(images) - mean.float()
        squared += float((x - x @ basis @ basis.T).square().double().sum())
    return squared / data.test.images.numel()


def _leading_directions(train: Images, mean: Tensor, n_components: int) -> Tensor:
    """The leading principal directions (D, n_components), by subspace iteration.

    Halko, Martinsson and Tropp (2011), algorithm 4.4, which needs no D x D matrix.
    """
    rng = torch.Generator().manual_seed(0)
    width = min(len(mean), n_components + 10)
    basis = torch.randn(len(mean), width, generator=rng)
    for _ in range(6):
        product = torch.zeros_like(basis)
        for images in train.images.flatten(1).split(_part_size(train)):
            x = scale(images) - mean.float()
            product += x.T @ (x @ basis)
        basis, _, _ = torch.linalg.svd(product, full_matrices=False)
    return basis[:, :n_components]


def _part_size(data: Images) -> int:
    """How many images to convert to floats at a time."""
    return max(1, min(10_000, 10_000 * 784 // data.images[0].numel()))


def _mean(data: Images) -> Tensor:
    """The mean image, float64 (C, H, W) in [0, 1]."""
    # Sums of 256 pixels are exact in float32, and three times as fast as in integers.
    total = sum(part.float().sum(0).double() for part in data.images.split(256))
    return torch.as_tensor(total) / (255 * len(data.labels))
