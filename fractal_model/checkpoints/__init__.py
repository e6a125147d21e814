"""Model files: the checkpoint folder, its storage, imports of published checkpoints, and the parity
cases that prove them."""
