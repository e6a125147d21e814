"""The slow path, without caches: every step runs the whole network anew.

Kept as the plain statement of what the fast path computes; tests hold the two equal.
"""

from torch import Tensor

from fractal_model.model.ar import ARLevel
from fractal_model.model.conditions import Conditions
from fractal_model.model.pixel import PixelNetwork
from fractal_model.sampling.masked import MaskedRows, MaskedSteps
from fractal_model.sampling.steps import LevelSteps, PixelSteps


def uncached_level_steps(level: ARLevel, conditions: Conditions, branches: int) -> LevelSteps:
    def step(canvas: Tensor, t: int) -> Conditions:
        tokens = canvas.repeat(branches, 1, 1, 1, 1)
        outputs = level(tokens, conditions).values_NCD
        return Conditions(outputs.unflatten(0, tokens.shape[:2])[:, t])

    return step


def uncached_pixel_steps(network: PixelNetwork, conditions: Tensor, branches: int) -> PixelSteps:
    def step(values: Tensor, channel: int) -> Tensor:
        return network(conditions, values.repeat(branches, 1))[:, channel]

    return step


def uncached_masked_steps(rows: MaskedRows) -> MaskedSteps:
    def step(canvas: Tensor, mask: Tensor, wanted: Tensor) -> Conditions:
        tokens = canvas.repeat(rows.branches, 1, 1, 1, 1)
        masks = mask.repeat(rows.branches, 1)
        handed_on = rows.level(tokens, masks, rows.conditions, guides=rows.guides, read=rows.read)
        return Conditions(handed_on.values_NCD[wanted.repeat(rows.branches, 1)[masks]])

    return step
