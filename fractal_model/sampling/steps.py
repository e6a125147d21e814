"""One step of an AR level or a pixel network at a time, on cached keys and values.

The caches belong to these objects, and so to the sampler; `reference.py` holds the same interface
without caches, as the yardstick of the tests and benchmarks.

Shapes: G branches (2 with guidance: conditional rows, then null rows), R rows, T sub-patches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from fractal_model.model.ar import ARLevel
from fractal_model.model.conditions import Conditions
from fractal_model.model.pixel import PixelNetwork


class LevelSteps(Protocol):
    """Conditions (G · R, 1, D) of sub-patch t, from a canvas (R, T, 3, p, p) filled up to t."""

    def __call__(self, canvas: Tensor, t: int) -> Conditions: ...


class PixelSteps(Protocol):
    """Logits (G · R, 256) of a channel, from values (R, 3) int64 known up to it."""

    def __call__(self, values: Tensor, channel: int) -> Tensor: ...


class CachedLevelSteps:
    """An AR level that embeds and computes the newest sub-patch alone, by `step` in place of its
    own."""

    def __init__(
        self,
        level: ARLevel,
        conditions: Conditions,
        branches: int,
        step: Callable[..., Conditions] = ARLevel.step,
    ) -> None:
        self._level = level
        self._step = step
        self._branches = branches
        self._first = level.first_token(conditions)
        self._caches = level.new_caches(self._first)

    def __call__(self, canvas: Tensor, t: int) -> Conditions:
        token = self._first
        if t > 0:
            token = self._level.next_token(canvas[:, t - 1]).repeat(self._branches, 1)
        return self._step(self._level, token, self._caches)


class CachedPixelSteps:
    """A pixel network that computes the newest channel alone."""

    def __init__(self, network: PixelNetwork, conditions: Tensor, branches: int) -> None:
        self._network = network
        self._branches = branches
        self._first = network.first_token(conditions)
        self._caches = network.new_caches(self._first)

    def __call__(self, values: Tensor, channel: int) -> Tensor:
        token = self._first
        if channel > 0:
            token = self._network.next_token(channel - 1, values[:, channel - 1])
            token = token.to(self._first.dtype).repeat(self._branches, 1)
        return self._network.step(token, channel, self._caches)
