"""A sweeper for any Hydra application whose sweeps survive interruptions: see README.md."""

__version__ = "0.1.0"
