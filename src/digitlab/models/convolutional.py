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
        norm: "group" or "none".
        activation: A key of `ACTIVATIONS`.
        output: What the decoder ends with, a key of `OUTPUTS`.
    """
    layers = [read_convolution(value) for value in channels]
    dense = None if hidden is None else read_dense(hidden)
    kernels = [layer.kernel for layer in layers]
    heights, widths = (edge_lengths(edge, kernels) for edge in image_shape[1:])
    last_shape = (layers[-1].channels, heights[-1], widths[-1])
    flat = math.prod(last_shape)

    def has_norm(width: int) -> bool:
        # Group normalisation of a single number would always give 0.
        return norm == "group" and width > 1

    def activate(layer: nn.Module, width: int, *, image: bool) -> list[nn.Module]:
        """Append the normalisation (of images only) and the activation to a layer."""
        # Groups of 16 channels, if they divide evenly. Unlike batch normalisation it normalises
        # each image by itself, so training, evaluation and DDP compute the same.
        groups = width // 16 if width % 16 == 0 else 1
        norms = [nn.GroupNorm(groups, width)] if image and has_norm(width) else []
        return [layer, *norms, ACTIVATIONS[activation]()]

    def convolutional_blocks(layer: Convolution) -> list[nn.Module]:
        width = layer.channels
        blocks: list[nn.Module] = []
        for _ in range(layer.blocks):
            inner = nn.Conv2d(width, width, 3, padding=1, bias=not has_norm(width))
            blocks.append(Residual(*activate(inner, width, image=True)))
        return blocks

    def dense_blocks(layer: Dense) -> list[nn.Module]:
        blocks: list[nn.Module] = []
        for _ in range(layer.blocks):
            inner = nn.Linear(layer.width, layer.width)
            blocks.append(Residual(*activate(inner, layer.width, image=False)))
        return blocks

    # Both lists run from the image to the latent; the decoder applies its stages in reverse.
    encoder_stages: list[tuple[str, nn.Module]] = []
    decoder_stages: list[tuple[str, nn.Module]] = []
    before = image_shape[0]
    for i, layer in enumerate(layers):
        name, after, kernel = f"conv{i + 1}", layer.channels, layer.kernel
        # Normalisation adds its own bias; the gradient of a transposed convolution's bias is slow
        # on CPUs.
        down = nn.Conv2d(
            before,
            after,
            kernel,
            stride=2,
            padding=padding(kernel),
            bias=not has_norm(after),
        )
        stage = nn.Sequential(*activate(down, after, image=True), *convolutional_blocks(layer))
        encoder_stages.append((name, stage))
        up = nn.ConvTranspose2d(
            after,
            before,
            kernel,
            stride=2,
            padding=padding(kernel),
            output_padding=(
                output_padding(heights[i], heights[i + 1], kernel),
                output_padding(widths[i], widths[i + 1], kernel),
            ),
            bias=not has_norm(before),
        )
        ending = [up, OUTPUTS[output]()] if i == 0 else activate(up, before, image=True)
        decoder_stages.append((name, nn.Sequential(*convolutional_blocks(layer), *ending)))
        before = after
    encoder_stages.append(("flatten", nn.Flatten()))
    unflatten = nn.Unflatten(1, last_shape)
    decoder_stages.append(("flatten", nn.Sequential(ACTIVATIONS[activation](), unflatten)))
    width = flat
    if dense is not None:
        width = dense.width
        layers_in = activate(nn.Linear(flat, width), width, image=False)
        encoder_stages.append(("dense", nn.Sequential(*layers_in, *dense_blocks(dense))))
        decoder_stages.append(("dense", nn.Linear(width, flat)))
    encoder_stages.append(("latent", nn.Linear(width, latent_dim)))
    from_latent: nn.Module = nn.Linear(latent_dim, width)
    if dense is not None:
        layers_out = activate(from_latent, width, image=False)
        from_latent = nn.Sequential(*layers_out, *dense_blocks(dense))
    decoder_stages.append(("latent", from_latent))
    encoder, decoder = Stages(), Stages()
    for name, module in encoder_stages:
        encoder.add_module(name, module)
    for name, module in reversed(decoder_stages):
        decoder.add_module(name, module)
    return encoder, decoder
