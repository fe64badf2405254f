"""A run's files: whole checkpoints, the log and promotions. Starts nothing, draws nothing."""
