"""From logits to sampled 8-bit values: guidance, its filter, and the draw.

Shapes: N pixels, V = 256 values; with guidance the logits hold N conditional rows, then N null.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fractal_model.config.sampling import SamplingConfig

Draw = Callable[[Tensor, Tensor], Tensor]
"""From logits (N, V) and uniform numbers (N,) to values (N,) int64."""


def inverse_transform(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Sample each row's softmax by its cumulative sum: one uniform number a value."""
    cumulative = logits.softmax(-1).cumsum(-1)
    level = uniforms[:, None] * cumulative[:, -1:]
    values = torch.searchsorted(cumulative, level, right=True).squeeze(-1)
    return values.clamp(max=logits.shape[-1] - 1)


def most_likely(logits: Tensor, uniforms: Tensor) -> Tensor:
    """The greedy draw of the parity cases; `uniforms` is not used."""
    return logits.argmax(-1)


def guided_logits(
    logits: Tensor, guidance: Tensor | float | None, settings: SamplingConfig
) -> Tensor:
    """(N, V) logits to draw from: null + guidance · (conditional − null). `guidance`, one for all
    or (N, 1), is None where there are no null rows. Where the conditional probability is below the
    threshold, the null logit is raised so that guidance cannot favour the value."""
    logits = logits * settings.logit_scale
    if guidance is None:
        return logits
    conditional, null = logits.chunk(2)
    unlikely = conditional.softmax(-1) < settings.filter_threshold
    shift = null.amax(-1, keepdim=True) - conditional.amax(-1, keepdim=True)
    null = torch.where(unlikely, torch.maximum(null, conditional + shift), null)
    return null + guidance * (conditional - null)
