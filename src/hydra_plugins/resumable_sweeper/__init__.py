"""A sweeper for any Hydra application whose sweeps survive interruptions: see README.md."""

from hydra_plugins.resumable_sweeper._trial import Pruned, Trial, current_trial, report_step

__all__ = ["Pruned", "Trial", "current_trial", "report_step"]
__version__ = "0.1.0"
