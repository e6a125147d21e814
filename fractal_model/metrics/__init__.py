"""Metrics of generated images: features, distances between sets of features, and agreement with
classes."""
