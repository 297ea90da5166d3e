"""Data sets in memory: loading, splitting and batching."""

from digitlab.registry import register_dataset

__all__ = ["register_dataset"]
