"""The costs of a run: an estimate before it starts, and measurements on this machine."""
