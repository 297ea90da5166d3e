"""The process of a run: seeds, threads, signals and Lightning's Trainer."""
