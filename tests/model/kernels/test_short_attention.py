"""The kernels for short sequences equal plain attention and its gradients. Without a GPU they run
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

pytest.importorskip("triton", reason="Triton exists for Linux only")

from fractal_model.model.kernels.short_attention import short_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF = torch.bfloat16 if DEVICE == "cuda" else torch.float16  # The interpreter knows no bfloat16.
SHAPES = [
    *((11, 2, 3, 16), (7, 3, 22, 64), (5, 2, 17, 20), (3, 1, 1, 8)),
    *((3, 1, 32, 8), (2, 1, 5, 80), (2, 1, 32, 128)),
]
"""Rows, heads, positions and elements: one or several rows in a tile, narrow and odd heads."""


def heads(rows: int, count: int, length: int, width: int, dtype=torch.float32) -> Tensor:
    """Draw random heads in the memory layout of the qkv product."""
    generator = torch.Generator().manual_seed(0)
    product = torch.randn(rows, length, 3, count, width, generator=generator)
    return product.to(DEVICE, dtype).permute(2, 0, 3, 1, 4).requires_grad_()


def plain(heads_3BHSd: Tensor, *, causal: bool, factors: Tensor | float = 1.0) -> Tensor:
    query, key, value = heads_3BHSd
    scores = query @ key.mT * query.shape[-1] ** -0.5
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=DEVICE).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    return (scores.softmax(-1) * factors @ value).transpose(1, 2).flatten(2)


def output_and_gradient(attend, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output of `attend(x)` and the gradient of the sum of its squares."""
    x = x.detach().requires_grad_()
    output = attend(x)
    output.float().square().sum().backward()
    return output.detach().float(), x.grad.float()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (HALF, 0.05)])
def test_short_attention_equals_plain_attention(shape, causal, dtype, tolerance):
    x = heads(*shape, dtype=dtype)
    short = output_and_gradient(lambda x: short_attention(x, causal=causal, drop=0.0), x)
    expected = output_and_gradient(lambda x: plain(x, causal=causal), x.float())
    for ours, theirs in zip(short, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def attend_with_dropout(x: Tensor, seed: int = 3) -> Tensor:
    torch.manual_seed(seed)
    return short_attention(x, causal=False, drop=0.25)


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_the_gradient_drops_the_same_weights(shape):
    x = heads(*shape)
    rows, count, length, width = shape
    identity = torch.zeros(3, rows, count, length, max(width, length), device=DEVICE)
    # The scores are zero, so that each weight is 1 / length.
    identity[2] = torch.eye(length, max(width, length))
    weights = attend_with_dropout(identity).view(rows, length, count, -1)[..., :length]
    factors = weights.transpose(1, 2) * length
    dropped = output_and_gradient(attend_with_dropout, x)
    expected = output_and_gradient(lambda x: plain(x, causal=False, factors=factors), x)
    for ours, theirs in zip(dropped, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_weights_are_dropped_at_the_rate_and_depend_on_the_seed():
    identity = torch.zeros(3, 60, 2, 22, 32, device=DEVICE)
    identity[2] = torch.eye(22, 32)
    weights = attend_with_dropout(identity).view(60, 22, 2, 32)[..., :22]
    assert (weights == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert weights.max().item() == pytest.approx(1 / 22 / 0.75)
    by_position = (weights == 0).float().mean((0, 2))
    assert by_position.min() > 0.1 and by_position.max() < 0.4
    few = identity[:, :3]
    assert attend_with_dropout(few).equal(attend_with_dropout(few))
    assert not attend_with_dropout(few).equal(attend_with_dropout(few, seed=4))


def test_a_batch_without_rows_gives_empty_results():
    output, gradient = output_and_gradient(
        lambda x: short_attention(x, causal=True, drop=0.1), heads(0, 2, 3, 16)
    )
    assert output.shape == (0, 3, 32) and gradient.shape == (3, 0, 2, 3, 16)


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("rotated", [False, True])
def test_the_attention_module_gives_the_same_with_the_short_kernel(monkeypatch, rotated, qk_norm):
    torch.manual_seed(0)
    module = Attention(width=64, heads=2, bias=True, causal=rotated, qk_norm=qk_norm).to(DEVICE)
    x = torch.randn(7, 5, 64, device=DEVICE)
    rotary = rotary_factors(2, 32).to(DEVICE) if rotated else None
    results = []
    for short in (False, True):
        monkeypatch.setattr(attend_module, "_is_short", lambda heads, short=short: short)
        results.append(output_and_gradient(lambda x: module(x, rotary=rotary), x))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_gradient_of_another_memory_layout_gives_the_same():
    """A sum's gradient, for example, is one number that is expanded to all positions."""
    x = heads(7, 3, 22, 64)
    gradients = [
        torch.autograd.grad(short_attention(x, causal=False, drop=0.0), x, upstream)[0]
        for upstream in (
            torch.ones((), device=DEVICE).expand(7, 22, 192),
            torch.ones(22, 7, 192, device=DEVICE).transpose(0, 1),
            torch.ones(7, 22, 192, device=DEVICE),
        )
    ]
    assert gradients[0].equal(gradients[2]) and gradients[1].equal(gradients[2])


@pytest.mark.parametrize("drop", [0.0, 0.25])
@pytest.mark.parametrize("causal", [False, True])
def test_the_operations_meet_torchs_requirements(causal, drop):
    """Compiling and checkpointing rely on correct shapes, layouts and derivatives."""
    x, seed = heads(5, 2, 3, 16), torch.tensor([3], device=DEVICE)
    torch.library.opcheck(torch.ops.fractal.short_attention, (x, seed, causal, drop))
    upstream = torch.ones(5, 3, 32, device=DEVICE)
    arguments = (x.detach(), upstream, seed, causal, drop)
    torch.library.opcheck(torch.ops.fractal.short_attention_backward, arguments)


def test_a_checkpoint_drops_the_same_weights_again():
    def attend(x: Tensor) -> Tensor:
        return short_attention(x, causal=False, drop=0.25)

    x, results = heads(7, 3, 22, 64), []
    for function in (attend, partial(checkpoint, attend, use_reentrant=False)):
        torch.manual_seed(3)
        results.append(output_and_gradient(function, x))
    assert all(a.equal(b) for a, b in zip(*results, strict=True))


def test_compiled_code_gives_the_same():
    def attend(x: Tensor) -> Tensor:
        return short_attention(x, causal=True, drop=0.0)

    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True, dynamic=True)
    x = heads(7, 3, 22, 64)
    pairs = zip(output_and_gradient(attend, x), output_and_gradient(compiled, x), strict=True)
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
    assert counts == [7 * product, 6 * product]  # The kernel computes the scores again.
