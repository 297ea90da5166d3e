"""A run on disk: its files, its results, where they come from."""
