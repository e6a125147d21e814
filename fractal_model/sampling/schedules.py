"""The masking schedule of MAR levels and the guidance schedule, as pure functions."""

import math
from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=4096)
def masking_schedule(tokens: int, steps: int) -> tuple[int, ...]:
    """Sub-patches still masked after each step, when `tokens` are to be predicted: by a cosine down
    to 0 in `steps` steps, or in `tokens` steps where these are fewer. A step predicts at least one,
    the last step all that remain."""
    steps, masked, counts = min(steps, tokens), tokens, []
    for step in range(steps):
        scheduled = math.floor(tokens * math.cos(math.pi / 2 * (step + 1) / steps))
        masked = max(1, min(masked - 1, scheduled))
        counts.append(masked)
    return (*counts[:-1], 0) if counts else ()


def masking_schedules(hidden_R: Tensor, steps: int) -> Tensor:
    """(K, R): sub-patches still masked after each step; a row with few ends before the others."""
    counts, row = hidden_R.unique(return_inverse=True)
    of_counts = [masking_schedule(count, steps) for count in counts.tolist()]
    longest = max((len(schedule) for schedule in of_counts), default=0)
    padded = [schedule + (0,) * (longest - len(schedule)) for schedule in of_counts]
    return torch.tensor(padded, device=hidden_R.device, dtype=torch.long).T[:, row]


def guidance_at(progress: float, guidance: float) -> float:
    """Linear schedule at level 0: from 1 to `guidance` as `progress` goes from 0 to 1."""
    return 1 + (guidance - 1) * progress
