"""Work on many images in parts: in this process, stored on disk, or on workers of a Ray cluster."""
