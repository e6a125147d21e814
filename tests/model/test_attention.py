"""The causal mask of attention."""

from __future__ import annotations

import torch

from fractal_model.model.attention import Attention


def test_causal_attention_reads_no_later_position():
    torch.manual_seed(0)
    attention = Attention(width=16, heads=2, bias=True, causal=True).eval()
    x = torch.randn(1, 5, 16)
    changed = x.clone()
    changed[:, 3:] += 1
    with torch.no_grad():
        before, after = attention(x), attention(changed)
    assert before[:, :3].equal(after[:, :3])
    assert not before[:, 3].equal(after[:, 3])
