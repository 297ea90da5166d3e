"""The models, what they are compared with, and their checkpoints."""
