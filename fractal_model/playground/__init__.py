"""A page on this machine to draw, edit, compare and examine images with a model."""
