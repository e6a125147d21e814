"""Prepared data sets: their format, preparation from raw images, and the resumable loader."""
