"""The innermost MAR level as one function of tensors, which a GPU runs as a CUDA graph.

Here the function runs on the CPU, under a watch for operations that a CUDA graph cannot contain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fractal_model.config.sampling import SamplingConfig
from fractal_model.model.fractal import Guide
from fractal_model.sampling.known import KnownPixels
from fractal_model.sampling.sampler import Sampler
from tests.support import images_for, tiny_model

LABELS = torch.tensor([0, 1, 2, 3, 1])
SEEDS = [11, 12, 13, 14, 15]
KINDS = ["mar", "guided", "ar above mar"]
aten = torch.ops.aten
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
WAITING = (
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.lift_fresh.default,  # a tensor made of numbers, which is copied from the host
)


class NoWaiting(TorchDispatchMode):
    """Fails at an operation for which the host would wait for the device, or copy to it."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        assert operation not in WAITING, operation
        if operation in INDEXING:
            assert all(index is None or index.dtype != torch.bool for index in args[1]), operation
        return operation(*args, **(kwargs or {}))


class WatchedCalls:
    """Calls functions as `Graphs` does, and keeps the shapes of each call."""

    def __init__(self) -> None:
        self.shapes: list[tuple[torch.Size | None, ...]] = []

    def __call__(
        self,
        function: Callable[..., Tensor],
        *arguments: Tensor | None,
        weights: Iterable[Tensor],
    ) -> Tensor:
        assert all(isinstance(weight, torch.nn.Parameter) for weight in weights)
        shapes = tuple(None if a is None else a.shape for a in arguments)
        is_new = shapes not in self.shapes
        self.shapes.append(shapes)
        with NoWaiting() if is_new else nullcontext():  # The watch makes a call ten times slower.
            return function(*arguments)


def watched(sampler: Sampler) -> WatchedCalls:
    calls = WatchedCalls()
    sampler._steps = replace(sampler._steps, graphs=calls)
    return calls


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "changes", [{}, {"guidance_interval": (0.3, 0.7)}, {"guide": "weaker"}], ids=str
)
def test_images_are_those_of_the_plain_level_and_the_host_never_waits(kind, changes):
    model = tiny_model(kind)
    model.guide = Guide(tiny_model(kind, widths=(8,) * len(model.levels) + (4,)), "")
    settings = SamplingConfig(guidance=3.0, **changes)
    sampler = Sampler(model, settings)
    calls = watched(sampler)
    assert sampler(LABELS, SEEDS).equal(Sampler(model, settings)(LABELS, SEEDS))
    assert calls.shapes


def test_shapes_repeat_so_that_graphs_are_used_again():
    """Four sub-patches in three iterations: one, one, then two of each image."""
    sampler = Sampler(tiny_model("mar"), SamplingConfig(guidance=3.0, iterations=(3, 2)))
    calls = watched(sampler)
    sampler(LABELS, SEEDS)
    sampler(LABELS, SEEDS)
    assert len(calls.shapes) == 6
    assert len(set(calls.shapes)) == 2


def test_known_pixels_and_an_observer_are_sampled_without_a_graph():
    model = tiny_model("mar")
    sampler = Sampler(model, SamplingConfig(guidance=3.0))
    calls = watched(sampler)
    images = images_for(model, len(LABELS))
    mask = torch.zeros(len(images), *images.shape[-2:], dtype=torch.bool)
    sampler(LABELS, SEEDS, known=KnownPixels(images, mask))
    sampler(LABELS, SEEDS, observe=lambda *_: None)
    assert calls.shapes == []
