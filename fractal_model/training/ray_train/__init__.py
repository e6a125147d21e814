"""Training on the workers of Ray Train: the run, its workers, its checkpoints and its reports."""
