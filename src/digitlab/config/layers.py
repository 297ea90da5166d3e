"""The layers of an autoencoder as a configuration writes them. Imports no torch."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Convolution(NamedTuple):
    """A convolution of stride 2 and the residual blocks of its channels after it.

    Written as the number of channels, or as {channels: 32, kernel: 4, blocks: 1}.
    """

    channels: int
    kernel: int = 3
    blocks: int = 0


class Dense(NamedTuple):
    """A dense layer and the residual layers of its width after it.

    Written as the width, or as {width: 128, blocks: 2}.
    """

    width: int
    blocks: int = 0


def read_convolution(value: Any) -> Convolution:
    """Read an element of `model.channels`. Raises ValueError or TypeError if it is none."""
    layer = Convolution(**value) if isinstance(value, Mapping) else Convolution(value)
    _check(layer, channels=1, kernel=2, blocks=0)
    return layer


def read_dense(value: Any) -> Dense:
    """Read `model.hidden` unless it is null. Raises ValueError or TypeError if it is none."""
    layer = Dense(**value) if isinstance(value, Mapping) else Dense(value)
    _check(layer, width=1, blocks=0)
    return layer


def _check(layer: Convolution | Dense, **smallest: int) -> None:
    for key, least in smallest.items():
        value = getattr(layer, key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{key}={value}: must be a whole number >= {least}")


def are_convolutions(values: Any) -> bool:
    """Whether these are one or more elements of `model.channels`."""
    return len(values) >= 1 and all(_is_read(read_convolution, value) for value in values)


def is_dense(value: Any) -> bool:
    """Whether this is a value of `model.hidden`."""
    return value is None or _is_read(read_dense, value)


def _is_read(read: Any, value: Any) -> bool:
    try:
        read(value)
    except (TypeError, ValueError):
        return False
    return True


def edge_lengths(edge: int, kernels: Iterable[int]) -> list[int]:
    """Edge lengths before and after each stride-2 convolution, as 28, 14, 7, 4, 2, 1.

    An odd kernel is padded so that half a length is rounded up, an even one so that it is rounded
    down.
    """
    edges = [edge]
    for kernel in kernels:
        edges.append((edges[-1] + kernel % 2) // 2)
    return edges
