"""Sampling for several threads at once, such as the requests of a server, in common batches.

Decided here: a batch is not waited for until it is full. Requests gather for some milliseconds, and
while the batch before is sampled. Those with equal settings are one batch. An image does not depend
on the batch it is sampled in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock
from time import sleep

import torch
from torch import Tensor

from fractal_model.common.errors import FractalError
from fractal_model.config.sampling import SamplingConfig
from fractal_model.generation.sample_images import collect_images
from fractal_model.model.fractal import FractalModel

GATHER_SECONDS = 0.03
"""How long requests gather before a batch begins: requests of the same moment reach the server one
after another."""


class BusyError(FractalError):
    """Too many images wait already."""


@dataclass(frozen=True)
class Wanted:
    """Images that are wanted with equal settings: one for each of N labels and N seeds."""

    settings: SamplingConfig
    labels: Tensor
    seeds: Sequence[int]
    images: Future[Tensor] = field(default_factory=Future)
    """The images, (N, 3, S, S) uint8, as soon as they are sampled."""


class SharedSampling:
    """Samples images with one model for any number of threads."""

    def __init__(self, model: FractalModel, *, most_waiting: int) -> None:
        """`most_waiting` is the largest number of images that may wait for their batch."""
        self._model = model
        self._most_waiting = most_waiting
        self._waiting: list[Wanted] = []
        self._list_lock, self._turn = Lock(), Lock()

    @property
    def waiting(self) -> int:
        """Number of images that wait for their batch."""
        with self._list_lock:
            return self._count()

    def draw(self, wanted: Sequence[Wanted]) -> list[Tensor]:
        """Sample the images of all `wanted`, and return those of each. BusyError: too many images
        wait already. FractalError: a class or a seed is out of range."""
        with self._list_lock:
            waiting, own = self._count(), sum(len(each.seeds) for each in wanted)
            if waiting and waiting + own > self._most_waiting:
                raise BusyError(f"{waiting} images wait already: ask again in a while")
            self._waiting += wanted
        with self._turn:
            # Perhaps the thread before has sampled them together with its own.
            if not all(each.images.done() for each in wanted):
                sleep(GATHER_SECONDS)
                self._draw_all_waiting()
        return [each.images.result() for each in wanted]

    def _count(self) -> int:
        return sum(len(each.seeds) for each in self._waiting)

    def _draw_all_waiting(self) -> None:
        with self._list_lock:
            waiting, self._waiting = self._waiting, []
        by_settings = defaultdict(list)
        for each in waiting:
            by_settings[each.settings].append(each)
        for group in by_settings.values():
            try:
                self._draw(group)
            except Exception as error:
                for each in group:
                    each.images.set_exception(error)

    def _draw(self, group: Sequence[Wanted]) -> None:
        labels = torch.cat([each.labels for each in group])
        seeds = [seed for each in group for seed in each.seeds]
        images = collect_images(self._model, group[0].settings, labels, seeds)
        parts = images.split([len(each.seeds) for each in group])
        for each, part in zip(group, parts, strict=True):
            each.images.set_result(part)
