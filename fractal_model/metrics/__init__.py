"""Metrics of generated images, numbers alone: features, distances between sets of them, agreement
with classes."""
