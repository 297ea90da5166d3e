"""The models, the baselines they are compared with, and their checkpoints.

A file of your own imports from here: Model, register_model, register_init, register_schedule.
"""

from typing import TYPE_CHECKING, Any

from digitlab.registry import register_init, register_model, register_schedule

if TYPE_CHECKING:
    from digitlab.models.base import Model

__all__ = ["Model", "register_init", "register_model", "register_schedule"]


def __getattr__(name: str) -> Any:
    """Import Model when it is used: it takes torch, and so seconds."""
    if name != "Model":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from digitlab.models.base import Model

    return Model
