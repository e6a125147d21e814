"""The checkpoint folder, its storage, imports of published checkpoints, and their parity cases."""
