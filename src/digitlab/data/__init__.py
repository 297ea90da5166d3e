"""Data sets in memory: how they are read, split and batched."""
