"""Masks with a fixed number of masked sub-patches, to count operations."""

from __future__ import annotations

import math

import torch

from fractal_model.config.model import ModelConfig
from fractal_model.model.fractal import Rows


def masked(tokens: int) -> int:
    """Number of masked sub-patches among `tokens`."""
    return math.ceil(0.8 * tokens)


def shares(config: ModelConfig) -> tuple[float, ...]:
    """Share of masked sub-patches of each level; 1 for an AR level."""
    return tuple(masked(v.tokens) / v.tokens if v.generator == "mar" else 1 for v in config.levels)


def fixed_masks(tokens: list[int], generator: torch.Generator, mask_ratio: object = None):
    """A function like `training_masks` that masks the same number of sub-patches in each row."""

    def draw(level: int, rows: Rows) -> torch.Tensor:
        scores = torch.rand(len(rows.image), tokens[level], generator=generator)
        return scores.argsort(1).argsort(1) < masked(tokens[level])

    return draw
