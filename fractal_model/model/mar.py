"""The masked autoregressive level: sub-patches in any order, several at a time.

Shapes: R rows, T sub-patches of 3 × p × p on a grid of side g, N masked sub-patches of all rows,
n conditions read, D width.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fractal_model.config.model import MAX_CONDITIONS, LevelConfig, PixelConfig
from fractal_model.model.blocks import NORM_EPSILON, Block, run_blocks, vit_block
from fractal_model.model.conditions import Conditions
from fractal_model.model.kernels.linear import Linear
from fractal_model.model.patches import normalise
from fractal_model.model.pixel import PixelNetwork

GUIDING_WIDTH, GUIDING_BLOCKS, GUIDING_HEADS = 128, 3, 4
_AROUND = ((0, 0), (-1, 0), (0, 1), (1, 0), (0, -1))
"""Rows and columns from a sub-patch to what is handed on for it."""


class MARLevel(nn.Module):
    """A bidirectional transformer over the sub-patches of a patch, some of them masked."""

    __call__: Callable[..., Conditions]
    blocks: Sequence[Block]

    def __init__(self, config: LevelConfig) -> None:
        super().__init__()
        self.config = config
        width, heads, drop = config.width, config.heads, config.dropout
        self.prefix_length = config.conditions + config.guiding_pixel
        self.patch = Linear(3 * config.sub_patch_size**2, width)
        self.condition = Linear(config.condition_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, self.prefix_length + config.tokens, width))
        self.norm_in = nn.LayerNorm(width, eps=NORM_EPSILON)
        blocks = (vit_block(width, heads, causal=False, dropout=drop) for _ in range(config.blocks))
        self.add_module("blocks", nn.ModuleList(blocks))
        self.norm_out = nn.LayerNorm(width, eps=NORM_EPSILON)
        if config.guiding_pixel:
            guide = PixelConfig(
                width=GUIDING_WIDTH,
                blocks=GUIDING_BLOCKS,
                heads=GUIDING_HEADS,
                condition_width=config.condition_width,
            )
            self.guide_network = PixelNetwork(guide)
            self.guide = Linear(3, width)

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor,
        conditions: Conditions,
        *,
        guides: Tensor | None = None,
        selected: Tensor | None = None,
        read: int = MAX_CONDITIONS,
    ) -> Conditions:
        """Return the first `read` conditions of each selected sub-patch, (N, read, D), row by row.

        `tokens` (R, T, 3, p, p) uint8; `mask` (R, T) bool, true where the sub-patch is hidden;
        `guides` (R, 3) mean colours in 0 … 255, for a level with a guiding pixel; `selected` (R, T)
        bool, by default the mask."""
        x = self.patch(normalise(tokens).flatten(2))
        x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)
        x = torch.cat([*self._prefix(conditions, guides), x], dim=1)
        x = self.norm_in(x + self.positions)
        x = self.norm_out(run_blocks(self.blocks, x))[:, self.prefix_length :]
        return with_neighbours(x, mask if selected is None else selected, read)

    def prefix(self, conditions: Conditions, guides: Tensor | None) -> Tensor:
        """(R, P, D): what the blocks take for what stands before the sub-patches."""
        x = torch.cat(self._prefix(conditions, guides), dim=1)
        prefix: Tensor = self.norm_in(x + self.positions[:, : self.prefix_length])
        return prefix

    def masked(self) -> Tensor:
        """(1, T, D): what the blocks take for sub-patches, each of them masked."""
        masked: Tensor = self.norm_in(self.mask_token + self.positions[:, self.prefix_length :])
        return masked

    def shown(self, sub_patches: Tensor, places_N: Tensor) -> Tensor:
        """(N, 3, p, p) uint8 sub-patches to (N, D): what the blocks take for them."""
        x = self.patch(normalise(sub_patches).flatten(1))
        shown: Tensor = self.norm_in(x + self.positions[0, self.prefix_length + places_N])
        return shown

    def _prefix(self, conditions: Conditions, guides: Tensor | None) -> list[Tensor]:
        read = conditions.values_NCD[:, : self.config.conditions]
        prefix = [self.condition(read.flip(1))]
        if self.config.guiding_pixel:
            assert guides is not None
            colours = normalise(guides[..., None, None]).flatten(1)
            prefix.insert(0, self.guide(colours)[:, None])
        return prefix


def with_neighbours(x_RTD: Tensor, selected: Tensor, read: int = MAX_CONDITIONS) -> Conditions:
    """The conditions (N, read, D) of each selected sub-patch: its output and those above, right,
    below and left of it, zeros past the border, the first `read` of these."""
    row, token = selected.nonzero(as_tuple=True)
    places, inside = around(token, math.isqrt(x_RTD.shape[1]), read)
    return Conditions(x_RTD[row[:, None], places].where(inside[..., None], 0.0))


def around(token: Tensor, grid: int, read: int) -> tuple[Tensor, Tensor]:
    """Sub-patches (...) to themselves and those above, right, below and left of them, (..., read),
    and whether these are within the grid; for one outside, the nearest one inside is returned."""
    offsets = torch.tensor(_AROUND[:read], device=token.device)
    down = (token // grid)[..., None] + offsets[:, 0]
    right = (token % grid)[..., None] + offsets[:, 1]
    inside = (down >= 0) & (down < grid) & (right >= 0) & (right < grid)
    return down.clamp(0, grid - 1) * grid + right.clamp(0, grid - 1), inside
