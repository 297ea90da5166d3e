"""An experiment from its data to its figures."""
