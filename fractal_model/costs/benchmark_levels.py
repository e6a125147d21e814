"""What of sampling is spent in which level.

Decided here: time is exclusive, a level's own without that of the levels below it, and holds all
that the level does: its steps, the draws and what is moved in between. A level that computes the
pixels too, as the compiled innermost one does, stands with them in one entry.
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
from fractal_model.costs.timing import wait
from fractal_model.model.conditions import Conditions
from fractal_model.model.fractal import Rows
from fractal_model.sampling.descent import Descent
from fractal_model.sampling.sampler import Sampler


@dataclass(frozen=True)
class LevelCost:
    """Of one image."""

    level: str
    seconds_per_image: float
    gflop_per_image: float


class Stopwatch:
    """Exclusive seconds by name: while an inner part runs, the outer one's time stands still."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: defaultdict[int, float] = defaultdict(float)
        self._device = device
        self._running: list[int] = []
        self._since = 0.0

    @contextmanager
    def of(self, part: int) -> Iterator[None]:
        self._book()
        self._running.append(part)
        try:
            yield
        finally:
            self._book()
            self._running.pop()

    def _book(self) -> None:
        """What has passed since the last change goes to the part that ran."""
        wait(self._device)
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now


@dataclass
class _TimedDescent(Descent):
    stopwatch: Stopwatch

    def generate_patches(
        self, i: int, conditions: Conditions, rows: Rows, guidance: Tensor | None
    ) -> Tensor:
        with self.stopwatch.of(i):
            return super().generate_patches(i, conditions, rows, guidance)


def level_costs(
    sampler: Sampler,
    config: ModelConfig,
    labels: Tensor,
    seeds: Sequence[int],
    *,
    flops: Sequence[float],
    device: torch.device,
) -> tuple[LevelCost, ...]:
    """One more run, of a sampler that has run before; `flops` are of an image, by level."""
    stopwatch = Stopwatch(device)
    timed = copy(sampler)
    timed.descent = partial(_TimedDescent, stopwatch=stopwatch)
    timed(labels, seeds)
    names = [
        f"level {i} ({level.patch_size} → {level.sub_patch_size}, {level.generator})"
        for i, level in enumerate(config.levels)
    ]
    names.append("pixels")
    # Parts that never ran by themselves have run within the one above.
    return tuple(
        LevelCost(
            " and ".join(names[start:end]),
            stopwatch.seconds[start] / len(seeds),
            sum(flops[start:end]) / 1e9,
        )
        for start, end in pairwise((*sorted(stopwatch.seconds), len(names)))
    )
