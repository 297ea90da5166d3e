"""Walks through the latents of an autoencoder: along one coordinate, and between two images.

N latents z of Z coordinates.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from digitlab import figures
from digitlab.data.images import Images, kind_of_image, scale, to_array

# The rows that a figure has.
MAX_COORDINATES, MAX_PAIRS = 10, 5
# How far a coordinate is moved, in standard deviations of the latents.
OFFSETS = (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
# Images between two others, with both ends.
STEPS = 8


class Traversals(NamedTuple):
    """Latents that differ from one latent in a single coordinate."""

    # The position of the latent that they start from.
    start: int
    # The coordinate that moves in each row, and its share of the variance.
    coordinates: list[int]
    shares: list[float]
    z: Tensor  # (rows, OFFSETS, Z)


def draw_walks(
    decode: Callable[[Tensor], Tensor],
    latents: Tensor,
    images: Images,
    part: str,
    classes: Sequence[str],
    title: str,
) -> dict[str, Figure]:
    """Draw traversals, and interpolations unless all images are of one class.

    Args:
        decode: Computes the images (N, C, H, W) of latents (N, Z).
        latents: (N, Z).
        images: Their images.
        part: What the images are called, as "test".
        classes: The names of the classes.
        title: The name of the run, for the headings.
    """

    def decode_rows(z: Tensor) -> np.ndarray:
        decoded = to_array(decode(z.flatten(0, 1)))
        return decoded.reshape(*z.shape[:2], *decoded.shape[1:])

    moved, pairs = traverse(latents), choose_pairs(images.labels)
    name = figures.short(classes[int(images.labels[moved.start])])
    drawn = {
        "traversals": figures.traversals(
            decode_rows(moved.z),
            OFFSETS,
            moved.coordinates,
            moved.shares,
            f"One coordinate of z moves, from the {part} {name} nearest to the mean of z\n"
            f"sd: standard deviation, %: share of the variance; {title}",
        )
    }
    if len(pairs):
        ends = to_array(scale(images.images[pairs.flatten()]))
        drawn["interpolations"] = figures.interpolations(
            ends.reshape(*pairs.shape, *ends.shape[1:]),
            decode_rows(interpolate(latents[pairs[:, 0]], latents[pairs[:, 1]])),
            [(classes[start], classes[end]) for start, end in images.labels[pairs].tolist()],
            f"Decoded from straight lines in z between {part} {kind_of_image(classes)}\n{title}",
        )
    return drawn


def traverse(latents: Tensor) -> Traversals:
    """Move the coordinates of largest variance, one at a time.

    They start from the latent (of N, Z) that is nearest to the mean: the mean itself may lie where
    no image is.
    """
    variances = latents.var(0, correction=0)
    order = variances.argsort(descending=True, stable=True)[:MAX_COORDINATES]
    start = int((latents - latents.mean(0)).square().sum(1).argmin())
    z = latents[start].repeat(len(order), len(OFFSETS), 1)
    offsets = torch.tensor(OFFSETS)
    for row, coordinate in enumerate(order):
        z[row, :, coordinate] += offsets * variances[coordinate].sqrt()
    shares = variances[order] / variances.sum().clamp(min=1e-12)
    return Traversals(start, order.tolist(), shares.tolist(), z)


def choose_pairs(labels: Tensor) -> Tensor:
    """Choose pairs of images of different classes; their positions, int64 (pairs, 2).

    A class is paired with the one half of all classes further, as 3 with 8 of ten digits.
    """
    first = [int((labels == label).nonzero()[0]) for label in labels.unique()]
    half = len(first) // 2
    pairs = list(zip(first[:half], first[half : 2 * half], strict=True))[:MAX_PAIRS]
    return torch.tensor(pairs, dtype=torch.long).view(-1, 2)


def interpolate(start: Tensor, end: Tensor) -> Tensor:
    """The latents on the lines from `start` to `end` (pairs, Z), ends included.

    Returns:
        (pairs, STEPS, Z).
    """
    share = torch.linspace(0, 1, STEPS)[:, None]
    return (1 - share) * start[:, None] + share * end[:, None]
