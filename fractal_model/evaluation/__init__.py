"""Evaluation of a model by a written protocol: its likelihood, its samples and their metrics, and
the rules that decide between models."""
