"""Sampling on a GPU; on a machine that has none, nothing of it is shown."""

from __future__ import annotations

import pytest
import torch

from fractal_model.config.sampling import SamplingConfig
from fractal_model.sampling.cuda_graphs import Graphs
from fractal_model.sampling.sampler import Sampler
from tests.support import tiny_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
LABELS = torch.tensor([0, 1, 2, 3, 1])
SEEDS = [11, 12, 13, 14, 15]


def test_cached_gives_the_images_of_the_uncached_path(kind):
    model, settings = tiny_model(kind).to("cuda"), SamplingConfig(guidance=3.0)
    fast = Sampler(model, settings)(LABELS, SEEDS)
    slow = Sampler(model, settings, cached=False)(LABELS, SEEDS)
    assert fast.device.type == "cuda"
    assert fast.equal(slow)


@pytest.mark.parametrize("kind", ["ar", "mar above ar"])
def test_a_captured_level_gives_the_images_of_the_plain_one(kind):
    model = tiny_model(kind).to("cuda")
    plain = Sampler(model, SamplingConfig(guidance=3.0))
    captured = Sampler(model, SamplingConfig(guidance=3.0, compile=True))
    for labels, seeds in ((LABELS, SEEDS), (LABELS.flip(0), SEEDS[::-1]), (LABELS[:2], [7, 8])):
        assert captured(labels, seeds).equal(plain(labels, seeds))


def test_graphs_outlive_the_autocast_they_were_captured_in():
    model = tiny_model("ar").to("cuda")
    sampler = Sampler(model, SamplingConfig(guidance=3.0, compile=True))
    found = []
    for _ in range(2):
        with torch.autocast("cuda", torch.bfloat16):
            found.append(sampler(LABELS, SEEDS))
        torch.rand(1000, 1000, device="cuda")  # takes memory that was given back
    assert found[0].equal(found[1])


def test_a_graph_for_each_shape_and_then_none(monkeypatch):
    monkeypatch.setattr("fractal_model.sampling.cuda_graphs._MOST_GRAPHS", 2)
    graphs = Graphs()
    for size in (1, 2, 3, 2, 2, 1):
        x = torch.arange(size, device="cuda")
        assert graphs(twice, x, None).equal(2 * x)
        assert graphs(twice, x, x).equal(3 * x)


def twice(x: torch.Tensor, shift: torch.Tensor | None) -> torch.Tensor:
    return 2 * x if shift is None else 2 * x + shift


def test_weights_that_have_moved_are_looked_for_anew():
    graphs, x = Graphs(), torch.ones(3, device="cuda")
    kept = []
    for factor in (2.0, 3.0):
        weight = torch.full((1,), factor, device="cuda")
        kept.append(weight)  # or the next would take its place
        for _ in range(3):
            assert graphs(lambda x, w=weight: x * w, x, weights=[weight]).equal(x * factor)
    weight.fill_(5.0)  # in its place
    assert graphs(lambda x: x * weight, x, weights=[weight]).equal(x * 5)
