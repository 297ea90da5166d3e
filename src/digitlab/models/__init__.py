"""The models, the baselines they are compared with, and their checkpoints."""
