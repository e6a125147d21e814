"""The learning-rate schedule of the published recipe, a pure function of progress."""

import math


def learning_rate(step: int, *, peak: float, warmup_steps: int, total_steps: int) -> float:
    """Learning rate of step `step`, counted from 0. It rises linearly from 0 to `peak` in the first
    `warmup_steps` steps, then falls as half a cosine to 0 at `total_steps`."""
    if step < warmup_steps:
        return peak * step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
