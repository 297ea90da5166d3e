"""What training needs of the process: seeds, threads, signals, Lightning's Trainer."""
