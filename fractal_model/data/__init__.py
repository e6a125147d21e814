"""Prepared data sets: the format, the preparation from raw images, and the resumable loader."""
