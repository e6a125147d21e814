"""Measure the time that each level takes in a training step, forward and backward together.

Decided here: hooks note when the work moves from one part to the next. Forward, that is where a
network gets its conditions. Backward, it is where the gradient of these conditions is complete,
because then the level above, which gave them, continues. On a GPU the notes are events in the
queue of its work, so the step is not slowed.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fractal_model.costs.benchmark_levels import LevelCost, part_names
from fractal_model.model.conditions import Conditions
from fractal_model.model.fractal import FractalModel
from fractal_model.model.kernels.timing import wait

_REST = "optimiser and the rest"


class Timeline:
    """The moments at which the work of a device moves to another part, by the part's number."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[int, Any]] = []

    def mark(self, part: int) -> None:
        """Note that the work queued from now on belongs to `part`."""
        if self._device.type == "cuda":
            moment: Any = torch.cuda.Event(enable_timing=True)
            moment.record()
        else:
            moment = time.perf_counter()
        self._marks.append((part, moment))

    def seconds(self, parts: int) -> list[float]:
        """Seconds of each of `parts` parts up to the last mark, whose own part gets none."""
        wait(self._device)
        seconds = [0.0] * parts
        for (part, start), (_, end) in pairwise(self._marks):
            is_event = self._device.type == "cuda"
            seconds[part] += start.elapsed_time(end) / 1000 if is_event else end - start
        return seconds


def measure_training_levels(
    model: FractalModel, step: Callable[[], object], images: int, gflops: list[float]
) -> tuple[LevelCost, ...]:
    """Run a training step of `model` on a number of images once more. Return the costs of each
    level, of the pixel network with the loss, and of the rest of the step. `gflops` are the GFLOP
    per image of each level and of the pixel network."""
    timeline = Timeline(model.device)
    rest = len(gflops)
    wait(model.device)
    with watch_parts(model, timeline.mark):
        timeline.mark(rest)
        step()
        timeline.mark(rest)
    names = (*part_names(model.config), _REST)
    rows = zip(names, timeline.seconds(rest + 1), (*gflops, 0.0), strict=True)
    return tuple(LevelCost(name, seconds / images, gflop) for name, seconds, gflop in rows)


@contextmanager
def watch_parts(model: FractalModel, mark: Callable[[int], None]) -> Iterator[None]:
    """Call `mark` with the number of a part when a pass of the model begins its work or its
    backward pass: a level from 0, then the pixel network, then the rest."""
    parts = len(model.levels)
    with ExitStack() as hooks:
        for i, level in enumerate(model.levels):
            above = i - 1 if i else parts + 1
            _watch(hooks, level, mark, i, above)
            guide = getattr(level, "guide_network", None)
            if guide is not None:
                _watch(hooks, guide.condition, mark, i, above)
                handle = guide.norm_out.register_full_backward_pre_hook(
                    lambda module, gradient, i=i: mark(i)
                )
                hooks.callback(handle.remove)
        _watch(hooks, model.pixel.condition, mark, parts, parts - 1)
        yield


def _watch(
    hooks: ExitStack, module: nn.Module, mark: Callable[[int], None], part: int, above: int
) -> None:
    """Mark `part` before `module` runs, and `above` when the gradient of its conditions is
    complete."""

    def enter(module: nn.Module, inputs: tuple[object, ...]) -> None:
        mark(part)
        _conditions(inputs).register_hook(partial(leave, above))

    def leave(part: int, gradient: Tensor) -> None:
        mark(part)

    hooks.callback(module.register_forward_pre_hook(enter).remove)


def _conditions(inputs: tuple[object, ...]) -> Tensor:
    for value in inputs:
        if isinstance(value, Conditions):
            return value.values_NCD
    assert isinstance(inputs[0], Tensor)
    return inputs[0]
