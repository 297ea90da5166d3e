"""The configuration: its schema, its validation, its error messages. Imports no torch."""
