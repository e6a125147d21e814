"""Sampling of 8-bit values from logits: guidance, filter of unlikely values, random draw.

Shapes: N pixels, V = 256 values. With guidance the logits are N conditional rows, then N null rows.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fractal_model.config.sampling import WHOLE_INTERVAL, SamplingConfig

Draw = Callable[[Tensor, Tensor], Tensor]
"""Function of logits (N, V) and uniform numbers (N,) in [0, 1) that returns values (N,) int64."""


def inverse_transform(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one value per row, (N,), from the softmax of the logits: the inverse of the cumulative
    distribution at `uniforms` (N,)."""
    cumulative = logits.softmax(-1).cumsum(-1)
    thresholds = uniforms[:, None] * cumulative[:, -1:]
    values = torch.searchsorted(cumulative, thresholds, right=True).squeeze(-1)
    return values.clamp(max=logits.shape[-1] - 1)


def most_likely(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Return each row's value with the largest logit, (N,), to compare with published code."""
    return logits.argmax(-1)


def guided_logits(
    parts: Sequence[Tensor], guidance: Tensor | float | None, settings: SamplingConfig
) -> Tensor:
    """Multiply logits by the logit scale, and return null + guidance · (conditional − null), (N,
    V). `parts` are the logits by network, together conditional and then null rows. `guidance` is a
    number or (N, 1), or None if there are no null rows: then only the scale applies. Where the
    conditional probability is below the filter threshold, the null logit is raised, so guidance
    cannot favour the value."""
    logits = (parts[0] if len(parts) == 1 else torch.cat([*parts])) * settings.logit_scale
    if guidance is None:
        return logits
    conditional, null = logits.chunk(2)
    unlikely = conditional.softmax(-1) < settings.filter_threshold
    shift = null.amax(-1, keepdim=True) - conditional.amax(-1, keepdim=True)
    null = torch.where(unlikely, torch.maximum(null, conditional + shift), null)
    guided = null + guidance * (conditional - null)
    if settings.guidance_interval == WHOLE_INTERVAL or not isinstance(guidance, Tensor):
        return guided
    # Images outside the interval get exactly the logits that they get in a batch of their own.
    return torch.where(guidance == 1, conditional, guided)
