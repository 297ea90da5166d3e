"""Draw figures from arrays, without files, trainer or pyplot state."""

from digitlab.figures.autoencoder import (
    interpolations,
    latents,
    reconstructions,
    shapes,
    traversals,
)
from digitlab.figures.clusters import centers, confusion_matrix
from digitlab.figures.curves import effect, tick_positions, training_curve
from digitlab.figures.errors import errors
from digitlab.figures.layout import image_grid, render, short
from digitlab.figures.search import Panel, Points, panels

__all__ = [
    "Panel",
    "Points",
    "centers",
    "confusion_matrix",
    "effect",
    "errors",
    "image_grid",
    "interpolations",
    "latents",
    "panels",
    "reconstructions",
    "render",
    "shapes",
    "short",
    "tick_positions",
    "training_curve",
    "traversals",
]
