"""A convolutional encoder, and a decoder that inverts it stage by stage.

Encoder stage i is a 3 x 3 convolution of stride 2 to channels[i]; 28 x 28 becomes 14, 7, 4, 2, 1.
Images of any size can be halved until one pixel is left.
Then the tensor is flattened, optionally passed through a dense layer, and mapped to the latent z.
The decoder runs the same stages backwards: each transposed convolution restores exactly the size
before its convolution.
B images, C channels, H x W pixels, Z latent dimensions.
"""

from collections.abc import Sequence

from torch import Tensor, nn

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "hardswish": nn.Hardswish}
OUTPUTS = {"sigmoid": nn.Sigmoid, "linear": nn.Identity}


def edge_lengths(edge: int, n_layers: int) -> list[int]:
    """Edge lengths before and after each of n stride-2 convolutions, as 28, 14, 7, 4, 2, 1."""
    edges = [edge]
    for _ in range(n_layers):
        edges.append((edges[-1] + 1) // 2)
    return edges


def output_padding(edge: int, halved: int) -> int:
    """What restores an edge in a transposed convolution: 1 for an even one, 0 for an odd one."""
    return edge - (2 * halved - 1)


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
    channels: Sequence[int],
    latent_dim: int,
    hidden: int | None,
    norm: str,
    activation: str,
    output: str,
) -> tuple[Stages, Stages]:
    """Build the encoder (B, C, H, W) -> (B, Z) and the decoder back.

    Args:
        image_shape: (C, H, W).
        channels: The output channels of each convolution.
        latent_dim: Z.
        hidden: The width of the dense layer, or None for no dense layer.
        norm: "group" or "none".
        activation: A key of `ACTIVATIONS`.
        output: What the decoder ends with, a key of `OUTPUTS`.
    """
    heights, widths = (edge_lengths(edge, len(channels)) for edge in image_shape[1:])
    flat = channels[-1] * heights[-1] * widths[-1]

    def has_norm(width: int) -> bool:
        # Group normalisation of a single number would always give 0.
        return norm == "group" and width > 1

    def activate(layer: nn.Module, width: int, *, image: bool) -> nn.Sequential:
        """Append the normalisation (of images only) and the activation to a layer."""
        # Groups of 16 channels, if they divide evenly. Unlike batch normalisation it normalises
        # each image by itself, so training, evaluation and DDP compute the same.
        groups = width // 16 if width % 16 == 0 else 1
        norms = [nn.GroupNorm(groups, width)] if image and has_norm(width) else []
        return nn.Sequential(layer, *norms, ACTIVATIONS[activation]())

    # Both lists run from the image to the latent; the decoder applies its stages in reverse.
    encoder_stages: list[tuple[str, nn.Module]] = []
    decoder_stages: list[tuple[str, nn.Module]] = []
    for i, (before, after) in enumerate(zip([image_shape[0], *channels], channels, strict=False)):
        name = f"conv{i + 1}"
        # Normalisation adds its own bias; the gradient of a transposed convolution's bias is slow
        # on CPUs.
        down = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=not has_norm(after))
        encoder_stages.append((name, activate(down, after, image=True)))
        up = nn.ConvTranspose2d(
            after,
            before,
            3,
            stride=2,
            padding=1,
            output_padding=(
                output_padding(heights[i], heights[i + 1]),
                output_padding(widths[i], widths[i + 1]),
            ),
            bias=not has_norm(before),
        )
        if i == 0:
            decoder_stages.append((name, nn.Sequential(up, OUTPUTS[output]())))
        else:
            decoder_stages.append((name, activate(up, before, image=True)))
    unflatten = nn.Unflatten(1, (channels[-1], heights[-1], widths[-1]))
    encoder_stages.append(("flatten", nn.Flatten()))
    decoder_stages.append(("flatten", nn.Sequential(ACTIVATIONS[activation](), unflatten)))
    if hidden is not None:
        encoder_stages.append(("dense", activate(nn.Linear(flat, hidden), hidden, image=False)))
        decoder_stages.append(("dense", nn.Linear(hidden, flat)))
    encoder_stages.append(("latent", nn.Linear(hidden or flat, latent_dim)))
    from_latent: nn.Module = nn.Linear(latent_dim, hidden or flat)
    if hidden is not None:
        from_latent = activate(from_latent, hidden, image=False)
    decoder_stages.append(("latent", from_latent))
    encoder, decoder = Stages(), Stages()
    for name, stage in encoder_stages:
        encoder.add_module(name, stage)
    for name, stage in reversed(decoder_stages):
        decoder.add_module(name, stage)
    return encoder, decoder
