"""The masked autoregressive level: sub-patches in any order, several at a time.

Shapes: R rows, T sub-patches of 3 × p × p on a grid of side g, N masked sub-patches of all rows,
n conditions read, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fractal_model.config import LevelConfig, PixelConfig
from fractal_model.model.blocks import NORM_EPSILON, run_blocks, vit_block
from fractal_model.model.conditions import Conditions
from fractal_model.model.pixel import PixelNetwork
from fractal_model.model.pixels import normalise
from fractal_model.model.rows import rowwise

GUIDING_WIDTH, GUIDING_BLOCKS, GUIDING_HEADS = 128, 3, 4


class MARLevel(nn.Module):
    """A bidirectional transformer over the sub-patches of a patch, some of them masked."""

    def __init__(self, config: LevelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.prefix_length = config.conditions + config.guiding_pixel
        self.patch = nn.Linear(3 * config.sub_patch_size**2, width)
        self.condition = nn.Linear(config.condition_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, self.prefix_length + config.tokens, width))
        self.norm_in = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.blocks = nn.ModuleList(
            vit_block(width, config.heads, causal=False, dropout=config.dropout)
            for _ in range(config.blocks)
        )
        self.norm_out = nn.LayerNorm(width, eps=NORM_EPSILON)
        if config.guiding_pixel:
            self.guide_network = PixelNetwork(
                PixelConfig(
                    width=GUIDING_WIDTH,
                    blocks=GUIDING_BLOCKS,
                    heads=GUIDING_HEADS,
                    condition_width=config.condition_width,
                )
            )
            self.guide = nn.Linear(3, width)

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor,
        conditions: Conditions,
        *,
        guides: Tensor | None = None,
        wanted: Tensor | None = None,
    ) -> Conditions:
        """Five conditions for each wanted sub-patch, (N, 5, D), row-major over (row, sub-patch).

        `tokens` (R, T, 3, p, p) uint8; `mask` (R, T) bool, true where the sub-patch is hidden;
        `guides` (R, 3) mean colours in 0 … 255, for a level with a guiding pixel; `wanted` (R, T)
        bool, by default the mask itself.
        """
        x = rowwise(self.patch, normalise(tokens).flatten(2), self.config.width)
        x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)
        x = torch.cat([*self._prefix(conditions, guides), x], dim=1)
        x = run_blocks(self.blocks, self.norm_in(x + self.positions))
        x = self.norm_out(x)[:, self.prefix_length :]
        return with_neighbours(x, mask if wanted is None else wanted)

    def _prefix(self, conditions: Conditions, guides: Tensor | None) -> list[Tensor]:
        read, width = conditions.values_NCD[:, : self.config.conditions], self.config.width
        prefix = [rowwise(self.condition, read.flip(1), width)]
        if self.config.guiding_pixel:
            assert guides is not None
            colours = normalise(guides[..., None, None]).flatten(1)
            prefix.insert(0, rowwise(self.guide, colours, width)[:, None])
        return prefix


def with_neighbours(x_RTD: Tensor, wanted: Tensor) -> Conditions:
    """Gather each wanted output with those above, right, below and left; zeros past the border."""
    rows, count, width = x_RTD.shape
    grid = round(count**0.5)
    padded = F.pad(x_RTD.view(rows, grid, grid, width), (0, 0, 1, 1, 1, 1))
    row, token = wanted.nonzero(as_tuple=True)
    stride = grid + 2
    centre = row * stride**2 + (token // grid + 1) * stride + token % grid + 1
    offsets = torch.tensor([0, -stride, 1, stride, -1], device=x_RTD.device)
    return Conditions(padded.reshape(-1, width)[centre[:, None] + offsets])
