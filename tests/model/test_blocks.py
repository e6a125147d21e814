"""The feed-forward parts compute what timm's compute with the same weights."""

from __future__ import annotations

import pytest
import torch
from timm.layers import Mlp, SwiGLU
from torch import nn

from fractal_model.model.blocks import ar_block, vit_block

WIDTH = 96


def timm_mlp(width: int) -> nn.Module:
    return Mlp(width, 4 * width)


def timm_swiglu(width: int) -> nn.Module:
    return SwiGLU(width, 8 * width // 3, bias=False, align_to=256)


@pytest.mark.parametrize("width", [96, 98])
@pytest.mark.parametrize(
    ("block", "timm_part"),
    [
        (lambda width: vit_block(width, 2, causal=False, dropout=0.0), timm_mlp),
        (lambda width: ar_block(width, 2, dropout=0.0), timm_swiglu),
    ],
)
def test_feed_forward_equals_timm(block, timm_part, width):
    torch.manual_seed(0)
    ours, expected = block(width).feed_forward, timm_part(width)
    expected.load_state_dict(ours.state_dict())
    x = torch.randn(3, 5, width)
    torch.testing.assert_close(ours(x), expected(x))


@pytest.mark.parametrize(
    "block",
    [
        vit_block(WIDTH, 2, causal=False, dropout=0.5),
        ar_block(WIDTH, 2, dropout=0.5),
    ],
)
def test_dropout_acts_in_training_only(block):
    torch.manual_seed(0)
    x = torch.randn(1, 4, WIDTH)
    block.train()
    is_dropped = block.feed_forward(x) == 0
    assert 0.3 < is_dropped.float().mean() < 0.7
    block.eval()
    assert not (block.feed_forward(x) == 0).any()
