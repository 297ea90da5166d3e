"""Data sets in memory: loading, splitting and batching."""

from digitlab.data.registry import register_dataset

__all__ = ["register_dataset"]
