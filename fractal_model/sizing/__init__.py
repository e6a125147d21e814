"""A new size for a data set: proposed, tried for one training step, written to params.yaml."""
