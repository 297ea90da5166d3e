"""digitlab: experiments with minibatch k-means and a convolutional autoencoder on MNIST.

From Python (docs/python.md): `run`, `load_model` and `runs_table`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from digitlab.api import Results, load_model, run, runs_table

__all__ = ["Busy", "Results", "RunFailed", "load_model", "run", "runs_table"]


class RunFailed(RuntimeError):
    """A run ended without results, and has said why in its log and in results.json."""


class Busy(RunFailed):
    """Another process works on the run."""


def __getattr__(name: str) -> Any:
    """Import `digitlab.api` when it is first used, so that `import digitlab` takes no time."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from digitlab import api

    return getattr(api, name)
