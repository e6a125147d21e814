"""The kernels of short sequences are the plain attention and its gradients; without a GPU they run
in Triton's interpreter."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from fractal_model.model.attention import Attention
from fractal_model.model.kernels import attend as attend_module
from fractal_model.model.rotary import rotary_factors

pytest.importorskip("triton", reason="Triton is there for Linux alone")

from fractal_model.model.kernels.short_attention import short_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF = torch.bfloat16 if DEVICE == "cuda" else torch.float16  # which the interpreter knows
SHAPES = [
    *((11, 2, 3, 16), (7, 3, 22, 64), (5, 2, 17, 20), (3, 1, 1, 8)),
    *((3, 1, 32, 8), (2, 1, 5, 80), (2, 1, 32, 128)),
]
"""Rows, heads, positions, elements: several rows a tile and one, narrow heads and odd ones."""


def heads(rows: int, count: int, length: int, width: int, dtype=torch.float32) -> Tensor:
    """Laid out as a product of them all lays them out."""
    generator = torch.Generator().manual_seed(0)
    of_product = torch.randn(rows, length, 3, count, width, generator=generator)
    return of_product.to(DEVICE, dtype).permute(2, 0, 3, 1, 4).requires_grad_()


def plain(heads_3BHSd: Tensor, *, causal: bool, growth: Tensor | float = 1.0) -> Tensor:
    query, key, value = heads_3BHSd
    scores = query @ key.mT * query.shape[-1] ** -0.5
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=DEVICE).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return (scores.softmax(-1) * growth @ value).transpose(1, 2).flatten(2)


def both_ways(attend, x: Tensor) -> tuple[Tensor, Tensor]:
    """What comes out, and the gradient of the sum of its squares."""
    x = x.detach().requires_grad_()
    found = attend(x)
    found.float().square().sum().backward()
    return found.detach().float(), x.grad.float()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (HALF, 0.05)])
def test_it_is_the_plain_attention(shape, causal, dtype, tolerance):
    x = heads(*shape, dtype=dtype)
    found = both_ways(lambda x: short_attention(x, causal=causal, drop=0.0), x)
    expected = both_ways(lambda x: plain(x, causal=causal), x.float())
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def drop_weights(x: Tensor, seed: int = 3) -> Tensor:
    torch.manual_seed(seed)
    return short_attention(x, causal=False, drop=0.25)


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_dropped_weights_are_dropped_on_the_way_back_too(shape):
    x = heads(*shape)
    rows, count, length, width = shape
    shown = torch.zeros(3, rows, count, length, max(width, length), device=DEVICE)
    shown[2] = torch.eye(length, max(width, length))  # scores of zero: weights of 1 / length
    weights = drop_weights(shown).view(rows, length, count, -1)[..., :length]
    growth = weights.transpose(1, 2) * length
    found = both_ways(lambda x: drop_weights(x), x)
    expected = both_ways(lambda x: plain(x, causal=False, growth=growth), x)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_share_that_is_dropped():
    shown = torch.zeros(3, 60, 2, 22, 32, device=DEVICE)
    shown[2] = torch.eye(22, 32)
    weights = drop_weights(shown).view(60, 22, 2, 32)[..., :22]
    assert (weights == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert weights.max().item() == pytest.approx(1 / 22 / 0.75)
    by_place = (weights == 0).float().mean((0, 2))
    assert by_place.min() > 0.1 and by_place.max() < 0.4
    few = shown[:, :3]
    assert drop_weights(few).equal(drop_weights(few))
    assert not drop_weights(few).equal(drop_weights(few, seed=4))


def test_of_no_rows():
    found, gradient = both_ways(
        lambda x: short_attention(x, causal=True, drop=0.1), heads(0, 2, 3, 16)
    )
    assert found.shape == (0, 3, 32) and gradient.shape == (3, 0, 2, 3, 16)


@pytest.mark.parametrize("turned", [False, True])
def test_an_attention_takes_it_for_short_sequences(monkeypatch, turned):
    torch.manual_seed(0)
    module = Attention(width=64, heads=2, bias=True, causal=turned).to(DEVICE)
    x = torch.randn(7, 5, 64, device=DEVICE)
    rotary = rotary_factors(2, 32).to(DEVICE) if turned else None
    found = []
    for short in (False, True):
        monkeypatch.setattr(attend_module, "_is_short", lambda heads, short=short: short)
        found.append(both_ways(lambda x: module(x, rotary=rotary), x))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_gradient_that_lies_otherwise():
    """As the one of a sum: one number for all places."""
    x = heads(7, 3, 22, 64)
    found = [
        torch.autograd.grad(short_attention(x, causal=False, drop=0.0), x, upstream)[0]
        for upstream in (
            torch.ones((), device=DEVICE).expand(7, 22, 192),
            torch.ones(22, 7, 192, device=DEVICE).transpose(0, 1),
            torch.ones(7, 22, 192, device=DEVICE),
        )
    ]
    assert found[0].equal(found[2]) and found[1].equal(found[2])


@pytest.mark.parametrize("drop", [0.0, 0.25])
@pytest.mark.parametrize("causal", [False, True])
def test_torch_may_take_it_apart(causal, drop):
    """What compiling and checkpointing rely on: shapes, layouts, derivatives."""
    x, seed = heads(5, 2, 3, 16), torch.tensor([3], device=DEVICE)
    torch.library.opcheck(torch.ops.fractal.short_attention, (x, seed, causal, drop))
    upstream = torch.ones(5, 3, 32, device=DEVICE)
    arguments = (x.detach(), upstream, seed, causal, drop)
    torch.library.opcheck(torch.ops.fractal.short_attention_backward, arguments)


def test_a_checkpoint_drops_the_same_weights_again():
    def attend(x: Tensor) -> Tensor:
        return short_attention(x, causal=False, drop=0.25)

    x, found = heads(7, 3, 22, 64), []
    for way in (attend, partial(checkpoint, attend, use_reentrant=False)):
        torch.manual_seed(3)
        found.append(both_ways(way, x))
    assert all(a.equal(b) for a, b in zip(*found, strict=True))


def test_compiled_it_is_the_same():
    def attend(x: Tensor) -> Tensor:
        return short_attention(x, causal=True, drop=0.0)

    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True, dynamic=True)
    x = heads(7, 3, 22, 64)
    pairs = zip(both_ways(attend, x), both_ways(compiled, x), strict=True)
    assert all(a.equal(b) for a, b in pairs)


def test_operations_are_counted():
    x = heads(7, 3, 22, 64)
    counts = []
    for attend in (
        lambda x: short_attention(x, causal=False, drop=0.0),
        lambda x: plain(x, causal=False),
    ):
        with FlopCounterMode(display=False) as counter:
            attend(x).sum().backward()
        counts.append(counter.get_total_flops())
    product = 2 * 7 * 3 * 22 * 22 * 64
    assert counts == [7 * product, 6 * product]  # ours computes the scores again
