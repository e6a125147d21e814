"""Random image features, drawn from a normal distribution."""

from __future__ import annotations

import torch


def normal(count, width=8, *, seed, shift=0.0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator) * scale + shift
