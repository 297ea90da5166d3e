"""Draw figures from arrays, without files, trainer or pyplot state."""

from digitlab.figures.autoencoder import latents, reconstructions, shapes
from digitlab.figures.clusters import centers, confusion_matrix
from digitlab.figures.curves import effect, tick_positions, training_curve
from digitlab.figures.layout import image_grid, render

__all__ = [
    "centers",
    "confusion_matrix",
    "effect",
    "image_grid",
    "latents",
    "reconstructions",
    "render",
    "shapes",
    "tick_positions",
    "training_curve",
]
