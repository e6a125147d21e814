"""How images are sampled: settings, the masking schedule, the guidance schedule.

All schedules are pure functions of progress.
"""

from __future__ import annotations

import math
from functools import lru_cache


def still_masked(step: int, *, before: int, steps: int, tokens: int) -> int:
    """Sub-patches of a MAR level still masked after step `step` of `steps` (cosine schedule).

    At least 1 and at most one fewer than before; `masking_schedule` lets the last step predict all.
    """
    scheduled = math.floor(tokens * math.cos(math.pi / 2 * (step + 1) / steps))
    return max(1, min(before - 1, scheduled))


@lru_cache(maxsize=4096)
def masking_schedule(tokens: int, steps: int) -> tuple[int, ...]:
    """Still masked after each step, when `tokens` are to be predicted: down to 0, in `steps` steps
    or, where that is fewer, one sub-patch at a time."""
    steps, masked, counts = min(steps, tokens), tokens, []
    for step in range(steps):
        masked = still_masked(step, before=masked, steps=steps, tokens=tokens)
        counts.append(masked)
    return (*counts[:-1], 0) if counts else ()


def guidance_at(progress: float, guidance: float) -> float:
    """Linear schedule at level 0: from 1 to `guidance` as `progress` goes from 0 to 1."""
    return 1 + (guidance - 1) * progress
