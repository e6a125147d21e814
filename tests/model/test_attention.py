"""The causal mask of attention, and its norm of queries and keys."""

from __future__ import annotations

import pytest
import torch
from torch import nn

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


@pytest.mark.parametrize("causal", [False, True])
def test_normalised_queries_and_keys_give_the_attention_of_unit_heads(causal):
    """Computed here head by head from the weights: x / √(mean of x² + ε), times the scale."""
    torch.manual_seed(0)
    module = Attention(width=16, heads=2, bias=True, causal=causal, qk_norm=True).eval()
    for norm in (module.query_norm, module.key_norm):
        nn.init.uniform_(norm.weight, 0.5, 2.0)
    x = torch.randn(3, 5, 16)
    with torch.no_grad():
        output = module(x)
        query, key, value = module.qkv(x).unflatten(-1, (3, 2, 8)).unbind(2)
        mixed = []
        for head in range(2):
            q, k = (
                part[:, :, head]
                / (part[:, :, head].square().mean(-1, keepdim=True) + 1e-6).sqrt()
                * norm.weight
                for part, norm in ((query, module.query_norm), (key, module.key_norm))
            )
            scores = q @ k.mT / 8**0.5
            if causal:
                scores += torch.full((5, 5), -torch.inf).triu(1)
            mixed.append(scores.softmax(-1) @ value[:, :, head])
        expected = module.projection(torch.cat(mixed, dim=-1))
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)


def test_normalised_heads_keep_the_type_of_autocast():
    module = Attention(width=16, heads=2, bias=True, causal=False, qk_norm=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert module.project_heads(torch.randn(3, 5, 16)).dtype == torch.bfloat16
