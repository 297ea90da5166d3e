"""A run on disk: its files, its results and their provenance."""
