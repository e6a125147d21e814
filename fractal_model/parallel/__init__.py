"""Work in parts: in this process, kept on disk, or on the workers of a Ray cluster."""
