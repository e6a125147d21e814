"""Measure the time that each level takes in sampling.

Decided here: the time of a level excludes the levels below it. It covers everything else that the
level does: its iterations, the random draws and copying. A compiled innermost level computes the
pixels too, so this level and the pixels share an entry.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from fractal_model.config.model import ModelConfig
from fractal_model.model.conditions import Conditions
from fractal_model.model.fractal import Rows
from fractal_model.model.kernels.timing import wait
from fractal_model.sampling.descent import Descent
from fractal_model.sampling.sampler import Sampler


@dataclass(frozen=True)
class LevelCost:
    """Costs of a level for one image."""

    level: str
    seconds_per_image: float
    gflop_per_image: float


class Stopwatch:
    """Measures the seconds of each part, by its number. While a part runs inside another one, the
    time of the outer part stands still."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: defaultdict[int, float] = defaultdict(float)
        self._device = device
        self._running: list[int] = []
        self._since = 0.0

    @contextmanager
    def measure(self, part: int) -> Iterator[None]:
        self._add_elapsed()
        self._running.append(part)
        try:
            yield
        finally:
            self._add_elapsed()
            self._running.pop()

    def _add_elapsed(self) -> None:
        """Add the seconds since the last call to the innermost part that is running."""
        wait(self._device)
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now


@dataclass
class _TimedDescent(Descent):
    stopwatch: Stopwatch

    def generate_patches(
        self, i: int, conditions: Sequence[Conditions], rows: Rows, guidance: Tensor | None
    ) -> Tensor:
        with self.stopwatch.measure(i):
            return super().generate_patches(i, conditions, rows, guidance)


def part_names(config: ModelConfig) -> tuple[str, ...]:
    """The names of the levels and of the pixel network in a table of costs."""
    levels = (
        f"level {i} ({level.patch_size} → {level.sub_patch_size}, {level.generator})"
        for i, level in enumerate(config.levels)
    )
    return (*levels, "pixels")


def measure_levels(
    sampler: Sampler,
    config: ModelConfig,
    labels: Tensor,
    seeds: Sequence[int],
    *,
    flops: Sequence[float],
    device: torch.device,
) -> tuple[LevelCost, ...]:
    """Run a sampler once more and return the costs of each level. The caller must have run the
    sampler before, so that it is compiled and warm. `flops` are the operations per image of each
    level and of the pixel network."""
    stopwatch = Stopwatch(device)
    timed = copy(sampler)
    timed.descent = partial(_TimedDescent, stopwatch=stopwatch)
    timed(labels, seeds)
    names = part_names(config)
    # A level that has no time of its own was computed within the level above.
    return tuple(
        LevelCost(
            " and ".join(names[start:end]),
            stopwatch.seconds[start] / len(seeds),
            sum(flops[start:end]) / 1e9,
        )
        for start, end in pairwise((*sorted(stopwatch.seconds), len(names)))
    )
