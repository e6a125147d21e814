"""Metrics of generated images: Inception and DINOv2 features, distances between sets of them, class
agreement. Numbers are returned and nothing is stored."""
