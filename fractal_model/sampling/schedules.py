"""The masking schedule of MAR levels and the schedule of the guidance, as pure functions."""

import math
from functools import lru_cache

import torch
from torch import Tensor


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


def masking_schedules(hidden_R: Tensor, iterations: int) -> Tensor:
    """Return the masking schedules of R rows, one in each column of a tensor (K, R). K is the
    length of the longest; shorter ones are filled up with zeros. `hidden_R` is the number of masked
    sub-patches of each row."""
    counts, row = hidden_R.unique(return_inverse=True)
    schedules = [masking_schedule(count, iterations) for count in counts.tolist()]
    longest = max((len(schedule) for schedule in schedules), default=0)
    padded = [schedule + (0,) * (longest - len(schedule)) for schedule in schedules]
    return torch.tensor(padded, device=hidden_R.device, dtype=torch.long).T[:, row]


def guidance_at(progress: float, guidance: float) -> float:
    """Return the guidance of a step at level 0. It changes linearly with the step's `progress`,
    from 1 at progress 0 to `guidance` at progress 1."""
    return 1 + (guidance - 1) * progress
