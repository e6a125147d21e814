"""Work on many images in parts, computed in this process or by Ray workers and stored on disk."""
