"""A convolutional encoder, and a decoder that inverts it stage by stage.

Encoder stage i is a convolution of stride 2 to channels[i], by default 3 x 3; 28 x 28 becomes 14,
7, 4, 2, 1. Images of any size can be halved until one pixel is left.
Then the tensor is flattened, optionally passed through a dense layer, and mapped to the latent z.
Residual blocks may follow a convolution and the dense layer.
The decoder runs the same stages backwards: each transposed convolution restores exactly the size
before its convolution.
B images, C channels, H x W pixels, Z latent dimensions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from digitlab.config.layers import Convolution, Dense, edge_lengths, read_convolution, read_dense

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "hardswish": nn.Hardswish}
OUTPUTS = {"sigmoid": nn.Sigmoid, "linear": nn.Identity}


def output_padding(edge: int, halved: int, kernel: int) -> int:
    """What restores an edge in a transposed convolution with the padding of `padding`: 0 or 1."""
    return edge - (2 * (halved - 1) - 2 * padding(kernel) + kernel)


def padding(kernel: int) -> int:
    """The padding with which a convolution of stride 2 halves an edge, see `edge_lengths`."""
    return (kernel - 1) // 2


class Residual(nn.Sequential):
    """Layers whose output is added to their input."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute x + f(x)."""
        added: Tensor = x + super().forward(x)  # type: ignore[no-untyped-call]
        return added


class Stages(nn.Sequential):
    """Named stages in the order they are applied."""

    def shapes(self, x: Tensor) -> list[tuple[str, tuple[int, ...]]]:
        """Run x (1, ...) through; return each stage's name and output shape without the batch."""
        shapes = []
        for name, stage in self.named_children():
            x = stage(x)
            shapes.append((name, tuple(x.shape[1:])))
        return shapes


@dataclass(frozen=True)
class Style:
    """What follows each layer.

    Args:
        norm: "group" or "none".
        activation: A key of `ACTIVATIONS`.
    """

    norm: str
    activation: str

    def has_norm(self, width: int) -> bool:
        """Whether images of so many channels are normalised."""
        # Group normalisation of a single number would always give 0.
        return self.norm == "group" and width > 1

    def activate(self, layer: nn.Module, width: int, *, image: bool) -> list[nn.Module]:
        """Append the normalisation (of images only) and the activation to a layer."""
        # Groups of 16 channels, if they divide evenly. Unlike batch normalisation it normalises
        # each image by itself, so training, evaluation and DDP compute the same.
        groups = width // 16 if width % 16 == 0 else 1
        norms = [nn.GroupNorm(groups, width)] if image and self.has_norm(width) else []
        return [layer, *norms, ACTIVATIONS[self.activation]()]

    def blocks(self, number: int, width: int, *, image: bool) -> list[nn.Module]:
        """Make residual blocks: 3 x 3 convolutions of an image, or dense layers."""
        blocks: list[nn.Module] = []
        for _ in range(number):
            inner: nn.Module = (
                nn.Conv2d(width, width, 3, padding=1, bias=not self.has_norm(width))
                if image
                else nn.Linear(width, width)
            )
            blocks.append(Residual(*self.activate(inner, width, image=image)))
        return blocks

    def dense(self, n_in: int, layer: Dense) -> nn.Sequential:
        """Make a dense layer and its blocks."""
        first = self.activate(nn.Linear(n_in, layer.width), layer.width, image=False)
        return nn.Sequential(*first, *self.blocks(layer.blocks, layer.width, image=False))


def build_stages(
    image_shape: Sequence[int],
    channels: Sequence[Any],
    latent_dim: int,
    hidden: Any,
    norm: str,
    activation: str,
    output: str,
) -> tuple[Stages, Stages]:
    """Build the encoder (B, C, H, W) -> (B, Z) and the decoder back.

    Args:
        image_shape: (C, H, W).
        channels: Each convolution, see `read_convolution`.
        latent_dim: Z.
        hidden: The dense layer, see `read_dense`; or None for no dense layer.
        norm, activation: See `Style`.
        output: What the decoder ends with, a key of `OUTPUTS`.
    """
    style = Style(norm, activation)
    layers = [read_convolution(value) for value in channels]
    kernels = [layer.kernel for layer in layers]
    heights, widths = (edge_lengths(edge, kernels) for edge in image_shape[1:])
    sizes = list(zip(heights, widths, strict=True))
    # Both lists run from the image to the latent; the decoder applies its stages in reverse.
    encoder_stages: list[tuple[str, nn.Module]] = []
    decoder_stages: list[tuple[str, nn.Module]] = []
    before = image_shape[0]
    for i, layer in enumerate(layers):
        last = OUTPUTS[output]() if i == 0 else None
        down, up = build_convolution(style, before, layer, sizes[i], sizes[i + 1], last)
        encoder_stages.append((f"conv{i + 1}", down))
        decoder_stages.append((f"conv{i + 1}", up))
        before = layer.channels
    last_shape = (before, *sizes[-1])
    width = math.prod(last_shape)
    encoder_stages.append(("flatten", nn.Flatten()))
    unflatten = nn.Unflatten(1, last_shape)
    decoder_stages.append(("flatten", nn.Sequential(ACTIVATIONS[activation](), unflatten)))
    if hidden is None:
        encoder_stages.append(("latent", nn.Linear(width, latent_dim)))
        decoder_stages.append(("latent", nn.Linear(latent_dim, width)))
    else:
        dense = read_dense(hidden)
        encoder_stages.append(("dense", style.dense(width, dense)))
        decoder_stages.append(("dense", nn.Linear(dense.width, width)))
        encoder_stages.append(("latent", nn.Linear(dense.width, latent_dim)))
        decoder_stages.append(("latent", style.dense(latent_dim, dense)))
    encoder, decoder = Stages(), Stages()
    for name, module in encoder_stages:
        encoder.add_module(name, module)
    for name, module in reversed(decoder_stages):
        decoder.add_module(name, module)
    return encoder, decoder


def build_convolution(
    style: Style,
    before: int,
    layer: Convolution,
    size: tuple[int, int],
    halved: tuple[int, int],
    last: nn.Module | None,
) -> tuple[nn.Sequential, nn.Sequential]:
    """Build a stage of the encoder and the stage of the decoder that inverts it.

    Args:
        style: What follows each layer.
        before: The channels before the convolution.
        layer: The convolution.
        size: Height and width before it.
        halved: Height and width after it.
        last: What the decoder ends with, if this is its last stage.
    """
    after, kernel = layer.channels, layer.kernel
    # Normalisation adds its own bias; the gradient of a transposed convolution's bias is slow on
    # CPUs.
    down = nn.Conv2d(
        before, after, kernel, stride=2, padding=padding(kernel), bias=not style.has_norm(after)
    )
    encoder = nn.Sequential(
        *style.activate(down, after, image=True), *style.blocks(layer.blocks, after, image=True)
    )
    height, width = (output_padding(*edges, kernel) for edges in zip(size, halved, strict=True))
    up = nn.ConvTranspose2d(
        after,
        before,
        kernel,
        stride=2,
        padding=padding(kernel),
        output_padding=(height, width),
        bias=not style.has_norm(before),
    )
    ending = style.activate(up, before, image=True) if last is None else [up, last]
    decoder = nn.Sequential(*style.blocks(layer.blocks, after, image=True), *ending)
    return encoder, decoder
