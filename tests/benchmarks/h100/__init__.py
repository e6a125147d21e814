"""Measure training and sampling of the published sizes on one GPU, within a few minutes."""
