"""The slow path, without caches: every step runs the whole network anew.

Kept as the plain statement of what the fast path computes; tests hold the two equal.
"""

from __future__ import annotations

from torch import Tensor

from fractal_model.model.ar import ARLevel
from fractal_model.model.conditions import Conditions
from fractal_model.model.pixel import PixelNetwork
from fractal_model.sampling.masked import MaskedRows


class UncachedLevelSteps:
    def __init__(self, level: ARLevel, conditions: Conditions, branches: int) -> None:
        self._level = level
        self._conditions = conditions
        self._branches = branches

    def __call__(self, canvas: Tensor, t: int) -> Conditions:
        tokens = canvas.repeat(self._branches, 1, 1, 1, 1)
        outputs = self._level(tokens, self._conditions).values_NCD
        return Conditions(outputs.unflatten(0, tokens.shape[:2])[:, t])


class UncachedPixelSteps:
    def __init__(self, network: PixelNetwork, conditions: Tensor, branches: int) -> None:
        self._network = network
        self._conditions = conditions
        self._branches = branches

    def __call__(self, values: Tensor, channel: int) -> Tensor:
        return self._network(self._conditions, values.repeat(self._branches, 1))[:, channel]


class UncachedMaskedSteps:
    def __init__(self, rows: MaskedRows) -> None:
        self._rows = rows

    def __call__(self, canvas: Tensor, mask: Tensor, wanted: Tensor) -> Conditions:
        rows, branches = self._rows, (self._rows.branches, 1)
        tokens, masks = canvas.repeat(*branches, 1, 1, 1), mask.repeat(branches)
        handed_on = rows.level(tokens, masks, rows.conditions, guides=rows.guides, read=rows.read)
        return Conditions(handed_on.values_NCD[wanted.repeat(branches)[masks]])
