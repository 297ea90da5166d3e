"""The nearest of K centres c for each of B points x, both of D dimensions.

The nearest centre minimises |c|^2 - 2 x.c, which takes one matrix product. In float32 this
difference loses its digits if the points differ far less from each other than from the origin, so
the callers first move points and centres by the same vector, to a mean of x near 0.
"""

import torch
from torch import Tensor


def nearest(x: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Find the nearest centre of each point.

    Args:
        x: The points, (B, D), with a mean near 0.
        centers: (K, D).

    Returns:
        The index of the nearest centre, int64 (B,), and |x - c|^2 - |x|^2, float (B,).
    """
    scores = torch.addmm(centers.square().sum(1, keepdim=True), centers, x.T, alpha=-2)  # (K, B)
    distances, labels = scores.min(0)
    return labels, distances


def squared_distances(x: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Find each point's nearest centre, int64 (B,), and |x - c|^2 from the difference, float (B,).

    The arguments are those of `nearest`.
    """
    labels, _ = nearest(x, centers)
    return labels, centers[labels].sub_(x).square_().sum(1)


def nearest_excluding(k: int, x: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Do the same as `squared_distances` with all centres but k."""
    others = torch.arange(len(centers), device=x.device)
    others = others[others != k]
    labels, squared = squared_distances(x, centers[others])
    return others[labels], squared
