"""Initial centres of k-means: the choices of conf/init, each a function with @register_init.

The function takes the training images (uint8; `scale` converts them to [0, 1]), K, and the run's
random generator, and returns K centres, float (K, D) in [0, 1], of D pixels in all channels.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from digitlab.data.images import Images, scale
from digitlab.models.distances import nearest
from digitlab.registry import INITS, register_init

Initializer = Callable[[Images, int, torch.Generator], Tensor]


def draw_centers(name: str, data: Images, n_clusters: int, rng: torch.Generator) -> Tensor:
    """Draw the initial centres by a choice of conf/init.

    Args:
        name: The choice.
        data: The training images, on the CPU.
        n_clusters: K.
        rng: The random generator to draw with.

    Returns:
        The centres, float (K, D) in [0, 1].

    Raises:
        ValueError: The choice does not exist, the training images are too few for it, or its
            function returns something else.
    """
    draw: Initializer = INITS.find(name)
    centers = draw(data, n_clusters, rng)
    shape_expected = n_clusters, data.images[0].numel()
    expected = f"{shape_expected} in [0, 1]"
    if not isinstance(centers, Tensor) or not centers.numel():
        is_empty = centers is None or isinstance(centers, Tensor)
        kind = "nothing" if is_empty else f"a {type(centers).__name__}"
        raise ValueError(f"init={name}: gives {kind}, must be a tensor of {expected}")
    low, high = float(centers.min()), float(centers.max())
    if centers.shape != shape_expected or not 0 <= low <= high <= 1:
        shape = tuple(centers.shape)
        raise ValueError(f"init={name}: gives {shape} from {low:g} to {high:g}, must be {expected}")
    return centers


@register_init("random")
def uniform_noise(data: Images, n_clusters: int, rng: torch.Generator) -> Tensor:
    """Draw uniform noise in [0, 1)."""
    return torch.rand(n_clusters, data.images[0].numel(), generator=rng)


@register_init("digit")
def one_per_digit(data: Images, n_clusters: int, rng: torch.Generator) -> Tensor:
    """Draw a random image of each of the K classes, in their order."""
    rows = []
    for label in range(n_clusters):
        members = (data.labels == label).nonzero().flatten()
        if not len(members):
            raise ValueError(
                f"init=digit: no training image has the label {label}; use init=sample or more data"
            )
        rows.append(members[torch.randint(len(members), (), generator=rng)])
    return scale(data.images[torch.stack(rows)]).flatten(1)


@register_init("sample")
def forgy(data: Images, n_clusters: int, rng: torch.Generator) -> Tensor:
    """Draw distinct random images (Forgy, 1965)."""
    _check_size("sample", data, n_clusters)
    rows = torch.randperm(len(data.images), generator=rng)[:n_clusters]
    return scale(data.images[rows]).flatten(1)


@register_init("kmeans++")
def kmeans_plus_plus(data: Images, n_clusters: int, rng: torch.Generator) -> Tensor:
    """Draw images with probability proportional to D(x)^2 (Arthur and Vassilvitskii, 2007)."""
    _check_size("kmeans++", data, n_clusters)
    # In whole grey values every product is an integer, and every sum below 2^24 is exact in
    # float32: equal images are at distance 0, however bright they are.
    grey = data.images.flatten(1).float()
    grey -= grey.mean(0).round()
    norms = grey.square().sum(1)
    weights = torch.ones(len(grey))
    rows: list[Tensor] = []
    for _ in range(n_clusters):
        # All weights are 0 if there are fewer distinct images than centres.
        if not weights.any():
            weights = torch.ones(len(grey))
        drawn = torch.multinomial(weights, 1, generator=rng)
        _, distances = nearest(grey, grey[drawn])
        squared = (norms + distances).clamp_(min=0)
        weights = torch.minimum(weights, squared) if rows else squared
        rows.append(drawn)
    return scale(data.images[torch.cat(rows)]).flatten(1)


def _check_size(name: str, data: Images, n_clusters: int) -> None:
    """Raise ValueError if there are fewer images than centres."""
    n = len(data.images)
    if n_clusters > n:
        raise ValueError(
            f"model.n_clusters={n_clusters}: init={name} needs as many images, here are {n}"
        )
