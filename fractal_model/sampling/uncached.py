"""The slow sampling path, without caches: every step runs the whole network again.

It states plainly what the fast path computes, and tests compare the two.
"""

from torch import Tensor

from fractal_model.model.ar import ARLevel
from fractal_model.model.conditions import Conditions
from fractal_model.model.mar import Selected
from fractal_model.model.pixel import PixelNetwork
from fractal_model.sampling.masked import MaskedIterations, MaskedRows
from fractal_model.sampling.selection import branch_rows
from fractal_model.sampling.steps import LevelSteps, PixelSteps


def uncached_level_steps(level: ARLevel, conditions: Conditions) -> LevelSteps:
    def step(canvas: Tensor, t: int, branches: int) -> Conditions:
        tokens = canvas.repeat(branches, 1, 1, 1, 1)
        outputs = level(tokens, conditions.keep_rows(len(tokens))).values_NCD
        return Conditions(outputs.unflatten(0, tokens.shape[:2])[:, t])

    return step


def uncached_pixel_steps(network: PixelNetwork, conditions: Tensor, branches: int) -> PixelSteps:
    def step(values: Tensor, channel: int) -> Tensor:
        return network(conditions, values.repeat(branches, 1))[:, channel]

    return step


def uncached_masked_iterations(rows: MaskedRows) -> MaskedIterations:
    def iterate(canvas: Tensor, mask: Tensor, selected: Selected, branches: int) -> Conditions:
        tokens, masks = canvas.repeat(branches, 1, 1, 1, 1), mask.repeat(branches, 1)
        conditions = rows.conditions.keep_rows(len(tokens))
        guides = None if rows.guides is None else rows.guides[: len(tokens)]
        row, token = selected
        places = branch_rows(row, len(mask), branches), token.repeat(branches)
        return rows.level(
            tokens, masks, conditions, guides=guides, selected=places, count=rows.count
        )

    return iterate
