"""Attention by plain products is torch's fused attention, up to rounding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fractal_model.model import attention as module
from fractal_model.model.attention import attend


def heads(length: int, rows: int = 7, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 2, length, 16, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[2**21, 100, 1])
def most_scores(request, monkeypatch):
    """All rows at once, some at a time with some left over, one at a time."""
    monkeypatch.setattr(module, "_MOST_SCORES", request.param)


@pytest.mark.parametrize("queries", [1, 3, 5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_it_is_the_fused_attention(most_scores, queries, dtype, tolerance):
    query, key, value = (heads(n, seed=n).to(dtype) for n in (queries, 5, 5))
    with torch.no_grad():
        found = attend(query, key, value)
    expected = F.scaled_dot_product_attention(query.float(), key.float(), value.float())
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)


def test_dropped_weights_leave_the_mean():
    query, key, value = (heads(5, rows=2000, seed=n) for n in range(3))
    torch.manual_seed(0)
    found = attend(query, key, value.abs(), drop=0.25).mean()
    assert found.item() == pytest.approx(attend(query, key, value.abs()).mean().item(), rel=0.01)
