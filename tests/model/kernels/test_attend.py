"""Attention by plain products equals torch's fused attention, up to rounding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from fractal_model.model.kernels import attend as module
from fractal_model.model.kernels.attend import attend


def heads(length: int, rows: int = 7, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 2, length, 16, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[2**21, 100, 50])
def most_scores(request, monkeypatch):
    """All rows in one call, a few rows in each call with a smaller last call, one row in each."""
    monkeypatch.setattr(module, "_MOST_SCORES", request.param)


@pytest.mark.parametrize(("queries", "causal"), [(1, False), (3, False), (5, False), (5, True)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_attention_equals_the_fused_attention(most_scores, queries, causal, dtype, tolerance):
    query, key, value = (heads(n, seed=n).to(dtype) for n in (queries, 5, 5))
    with torch.no_grad():
        mixed = attend(query, key, value, causal=causal)
    float_heads = query.float(), key.float(), value.float()
    expected = F.scaled_dot_product_attention(*float_heads, is_causal=causal)
    assert mixed.dtype == dtype
    torch.testing.assert_close(mixed.float(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_derivatives_equal_those_of_the_fused_attention(causal, dtype, tolerance):
    inputs = [heads(5, seed=n).to(dtype).requires_grad_() for n in range(3)]
    upstream = heads(5, seed=3)
    gradients = torch.autograd.grad(attend(*inputs, causal=causal), inputs, upstream.to(dtype))
    inputs = [x.detach().float().requires_grad_() for x in inputs]
    fused = F.scaled_dot_product_attention(*inputs, is_causal=causal)
    expected = torch.autograd.grad(fused, inputs, upstream)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours.float(), theirs, rtol=tolerance, atol=tolerance)


def test_an_earlier_position_is_bit_identical_whatever_comes_later():
    query, key, value = (heads(5, seed=n) for n in range(3))
    for training in (False, True):
        with torch.set_grad_enabled(training):
            before = attend(query, key, value, causal=True)
            later = [torch.cat([x[:, :, :3], 1e4 + x[:, :, 3:]], 2) for x in (query, key, value)]
            assert attend(*later, causal=True)[:, :, :3].equal(before[:, :, :3])


@pytest.mark.parametrize("causal", [False, True])
def test_dropout_of_weights_keeps_the_mean(causal):
    query, key, value = (heads(5, rows=2000, seed=n) for n in range(3))
    torch.manual_seed(0)
    dropped = attend(query, key, value.abs(), causal=causal, drop=0.25).mean()
    whole = attend(query, key, value.abs(), causal=causal).mean()
    assert dropped.item() == pytest.approx(whole.item(), rel=0.01)


@pytest.mark.parametrize(
    ("length", "width", "capability", "short"),
    [
        (32, 128, (8, 0), True),
        (3, 16, (9, 0), True),
        (33, 16, (9, 0), False),
        (3, 129, (9, 0), False),
        (3, 16, (7, 5), False),
    ],
)
def test_the_short_kernel_needs_few_positions_narrow_heads_and_ampere(
    monkeypatch, length, width, capability, short
):
    monkeypatch.setattr(module, "_HAS_TRITON", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda gpu: capability)
    with FakeTensorMode():
        heads_3BHSd = torch.empty(3, 7, 2, length, width, device="cuda")
    assert module._is_short(heads_3BHSd) == short


@pytest.mark.parametrize(
    ("training", "queries", "drop", "products"),
    [
        (False, 5, 0.0, True),  # Few scores: products.
        (False, 1, 0.0, False),  # One position at a time: fused.
        (False, 200, 0.0, False),
        (True, 200, 0.0, True),
        (True, 1, 0.0, True),
        (True, 5, 0.1, True),
    ],
)
def test_a_cpu_computes_attention_in_the_faster_way(monkeypatch, training, queries, drop, products):
    """True for plain products, false for one call of the fused attention with all 7 rows."""
    fused_rows = []
    attention = F.scaled_dot_product_attention

    def count(*tensors: torch.Tensor, **options: object) -> torch.Tensor:
        fused_rows.append(len(tensors[0]))
        return attention(*tensors, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", count)
    query, key, value = heads(queries), heads(200, seed=1), heads(200, seed=2)
    if queries == 5:
        key, value = key[:, :, :5], value[:, :, :5]
    monkeypatch.setattr(module, "_MOST_ROWS", 2)  # This limit is for GPUs only.
    with torch.set_grad_enabled(training):
        attend(query, key, value, drop=drop)
    assert fused_rows == ([] if products else [7])
