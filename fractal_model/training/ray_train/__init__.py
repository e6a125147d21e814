"""Training with Ray Train: the run, its workers, their checkpoints and their reports."""
