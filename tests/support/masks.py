"""Masks of known size, to count operations by."""

from __future__ import annotations

import math

import torch

from fractal_model.config.model import ModelConfig
from fractal_model.model.fractal import Rows


def masked(tokens: int) -> int:
    return math.ceil(0.8 * tokens)


def shares(config: ModelConfig) -> tuple[float, ...]:
    return tuple(masked(v.tokens) / v.tokens if v.generator == "mar" else 1 for v in config.levels)


def fixed_masks(tokens: list[int], generator: torch.Generator):
    """As `training_masks`, the count of each row set."""

    def draw(level: int, rows: Rows) -> torch.Tensor:
        scores = torch.rand(len(rows.image), tokens[level], generator=generator)
        return scores.argsort(1).argsort(1) < masked(tokens[level])

    return draw
