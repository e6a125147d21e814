"""Sampling steps of AR levels and pixel networks, on cached keys and values.

The functions here own the caches. `uncached.py` has the same functions without caches. Tests and
benchmarks compare the two.

Shapes: G branches of a network (2 with null rows: conditional rows, then these), R rows,
T sub-patches of side p, C width of a condition, D width of the level.
"""

from collections.abc import Callable

from torch import Tensor

from fractal_model.model.ar import ARLevel
from fractal_model.model.blocks import empty_caches
from fractal_model.model.conditions import Conditions
from fractal_model.model.pixel import CHANNELS, PixelNetwork

LevelSteps = Callable[[Tensor, int, int], Conditions]
"""Function that computes one step per call, for t = 0, 1, … It gets a canvas (R, T, 3, p, p),
filled up to sub-patch t − 1, then t, and the number G of branches to compute, which may fall from
call to call but not rise. It returns the conditions (G · R, 1, D) of sub-patch t."""
PixelSteps = Callable[[Tensor, int], Tensor]
"""Function that computes one channel per call: red, green, blue. It gets values (R, 3) int64,
filled up to the channel before this one, and the number of this channel. It returns the logits of
this channel, (G · R, 256)."""


def cached_level_steps(
    level: ARLevel,
    conditions: Conditions,
    compute: Callable[..., Conditions] = ARLevel.step,
) -> LevelSteps:
    """Return the step function of an AR level for the conditions of the R rows of each branch. A
    step runs the level for the newest sub-patch only, by `compute(level, token, caches)`."""
    first = level.first_token(conditions)
    caches = empty_caches(level.blocks, level.config.tokens, first)

    def step(canvas: Tensor, t: int, branches: int) -> Conditions:
        rows = branches * len(canvas)
        if rows < len(caches[0].keys):
            caches[:] = [cache.keep_rows(rows) for cache in caches]
        if t == 0:
            return compute(level, first[:rows], caches)
        token = level.next_token(canvas[:, t - 1]).repeat(branches, 1)
        return compute(level, token, caches)

    return step


def cached_pixel_steps(network: PixelNetwork, conditions: Tensor, branches: int) -> PixelSteps:
    """Return the step function of a pixel network for pixels with conditions (G · R, C)."""
    first = network.first_token(conditions)
    caches = empty_caches(network.blocks, CHANNELS, first)

    def step(values: Tensor, channel: int) -> Tensor:
        if channel == 0:
            return network.step(first, channel, caches)
        token = network.next_token(channel - 1, values[:, channel - 1])
        return network.step(token.to(first.dtype).repeat(branches, 1), channel, caches)

    return step
