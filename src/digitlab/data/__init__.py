"""Data sets in memory: loading, splitting and batching."""
