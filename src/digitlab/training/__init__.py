"""The stages of an experiment, from its data to its figures."""
