"""Sampling on a GPU; skipped on a machine without one."""

from __future__ import annotations

import pytest
import torch

from fractal_model.config.sampling import SamplingConfig
from fractal_model.model.fractal import Guide
from fractal_model.sampling.cuda_graphs import Graphs
from fractal_model.sampling.sampler import Sampler
from tests.support import tiny_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
LABELS = torch.tensor([0, 1, 2, 3, 1])
SEEDS = [11, 12, 13, 14, 15]


@pytest.mark.parametrize("qk_norm", [False, True])
def test_cached_gives_the_images_of_the_uncached_path(kind, qk_norm):
    model = tiny_model(kind, qk_norm=qk_norm).to("cuda")
    settings = SamplingConfig(guidance=3.0)
    fast = Sampler(model, settings)(LABELS, SEEDS)
    slow = Sampler(model, settings, cached=False)(LABELS, SEEDS)
    assert fast.device.type == "cuda"
    assert fast.equal(slow)


@pytest.mark.parametrize("kind", ["ar", "mar above ar", "mar", "guided", "ar above mar"])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize(
    "changes", [{}, {"guidance_interval": (0.3, 0.7)}, {"guide": "weaker"}], ids=str
)
def test_a_captured_level_gives_the_images_of_the_plain_one(kind, qk_norm, changes):
    model = tiny_model(kind, qk_norm=qk_norm).to("cuda")
    model.guide = Guide(tiny_model(kind, widths=(8,) * len(model.levels) + (4,)), "")
    plain = Sampler(model, SamplingConfig(guidance=3.0, **changes))
    captured = Sampler(model, SamplingConfig(guidance=3.0, compile=True, **changes))
    for labels, seeds in ((LABELS, SEEDS), (LABELS.flip(0), SEEDS[::-1]), (LABELS[:2], [7, 8])):
        assert captured(labels, seeds).equal(plain(labels, seeds))


@pytest.mark.parametrize("kind", ["ar", "mar"])
def test_graphs_still_work_after_their_autocast_context_has_ended(kind):
    model = tiny_model(kind).to("cuda")
    sampler = Sampler(model, SamplingConfig(guidance=3.0, compile=True))
    images = []
    for _ in range(2):
        with torch.autocast("cuda", torch.bfloat16):
            images.append(sampler(LABELS, SEEDS))
        torch.rand(1000, 1000, device="cuda")  # Overwrites memory that was freed.
    assert images[0].equal(images[1])


def test_each_shape_has_a_graph_up_to_the_limit(monkeypatch):
    monkeypatch.setattr("fractal_model.sampling.cuda_graphs._MOST_GRAPHS", 2)
    graphs = Graphs()
    for size in (1, 2, 3, 2, 2, 1):
        x = torch.arange(size, device="cuda")
        assert graphs(double, x, None).equal(2 * x)
        assert graphs(double, x, x).equal(3 * x)


def double(x: torch.Tensor, shift: torch.Tensor | None) -> torch.Tensor:
    return 2 * x if shift is None else 2 * x + shift


def test_weights_at_another_address_are_captured_again():
    graphs, x = Graphs(), torch.ones(3, device="cuda")
    weights = []
    for factor in (2.0, 3.0):
        weight = torch.full((1,), factor, device="cuda")
        weights.append(weight)  # Otherwise the next weight would get the same address.
        for _ in range(3):
            assert graphs(lambda x, w=weight: x * w, x, weights=[weight]).equal(x * factor)
    weight.fill_(5.0)  # The address stays the same.
    assert graphs(lambda x: x * weight, x, weights=[weight]).equal(x * 5)
