"""One step of an AR level or a pixel network at a time, on cached keys and values.

The caches belong to these functions, and so to the sampler; `uncached.py` has the same functions
without caches, as the yardstick of the tests and benchmarks.

Shapes: G branches (2 with guidance: conditional rows, then null rows), R rows, T sub-patches.
"""

from collections.abc import Callable

from torch import Tensor

from fractal_model.model.ar import ARLevel
from fractal_model.model.blocks import empty_caches
from fractal_model.model.conditions import Conditions
from fractal_model.model.pixel import CHANNELS, PixelNetwork

LevelSteps = Callable[[Tensor, int], Conditions]
"""From a canvas (R, T, 3, p, p) filled up to sub-patch t, and t, to its conditions (G · R, 1, D);
called for each t in turn."""
PixelSteps = Callable[[Tensor, int], Tensor]
"""From values (R, 3) int64 known up to a channel, and the channel, to its logits (G · R, 256);
called for each channel in turn."""


def cached_level_steps(
    level: ARLevel,
    conditions: Conditions,
    branches: int,
    compute: Callable[..., Conditions] = ARLevel.step,
) -> LevelSteps:
    """The steps of an AR level: each embeds and computes the newest sub-patch alone, through
    `compute(level, token, caches)`."""
    first = level.first_token(conditions)
    caches = empty_caches(level.blocks, level.config.tokens, first)

    def step(canvas: Tensor, t: int) -> Conditions:
        if t == 0:
            return compute(level, first, caches)
        token = level.next_token(canvas[:, t - 1]).repeat(branches, 1)
        return compute(level, token, caches)

    return step


def cached_pixel_steps(network: PixelNetwork, conditions: Tensor, branches: int) -> PixelSteps:
    """The steps of a pixel network: each computes the newest channel alone."""
    first = network.first_token(conditions)
    caches = empty_caches(network.blocks, CHANNELS, first)

    def step(values: Tensor, channel: int) -> Tensor:
        if channel == 0:
            return network.step(first, channel, caches)
        token = network.next_token(channel - 1, values[:, channel - 1])
        return network.step(token.to(first.dtype).repeat(branches, 1), channel, caches)

    return step
