"""The masking schedule of MAR levels and the schedule of the guidance, as pure functions."""

import math
from functools import lru_cache

from fractal_model.config.sampling import SamplingConfig


@lru_cache(maxsize=4096)
def masking_schedule(tokens: int, iterations: int) -> tuple[int, ...]:
    """Return how many sub-patches are still masked after each iteration, if `tokens` are masked at
    first. The number follows a cosine down to 0 in `iterations` iterations, or in `tokens`
    iterations if these are fewer. Each iteration predicts at least one sub-patch."""
    iterations, masked, counts = min(iterations, tokens), tokens, []
    for i in range(iterations):
        scheduled = math.floor(tokens * math.cos(math.pi / 2 * (i + 1) / iterations))
        masked = max(1, min(masked - 1, scheduled))
        counts.append(masked)
    return (*counts[:-1], 0) if counts else ()


_COSINE_POWER = 4
"""Power of the power-cosine schedule, as in masked diffusion transformers (Gao et al., 2023)."""


def guidance_at(progress: float, settings: SamplingConfig) -> float | None:
    """Return the guidance g of a step at level 0 whose progress is p; None outside the interval of
    guidance. With the scale s of the settings, the schedule `linear` is g = 1 + (s − 1) · p,
    `constant` is g = s, and `cosine` is g = 1 + (s − 1) · (1 − cos(π · p⁴)) / 2."""
    first, last = settings.guidance_interval
    if not first <= progress <= last:
        return None
    if settings.guidance_schedule == "constant":
        progress = 1.0
    elif settings.guidance_schedule == "cosine":
        progress = (1 - math.cos(math.pi * progress**_COSINE_POWER)) / 2
    return 1 + (settings.guidance - 1) * progress
