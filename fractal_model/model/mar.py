"""The masked autoregressive level, which predicts sub-patches in any order, several at a time.

Shapes: R rows, T sub-patches of 3 × p × p on a square grid, P positions of the prefix (guiding
pixel and conditions), N sub-patches selected in all rows together, D width.
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
"""Published width, blocks and heads of the pixel network that predicts guiding pixels."""
_OFFSETS = ((0, 0), (-1, 0), (0, 1), (1, 0), (0, -1))
"""Rows and columns from a sub-patch to itself and to its top, right, bottom and left neighbours."""
Selected = tuple[Tensor, ...]
"""Row and number of each of N sub-patches, two tensors (N,) int64."""


class MARLevel(nn.Module):
    """A bidirectional transformer over the sub-patches of a patch, some of which are masked."""

    __call__: Callable[..., Conditions]
    norm_in: Callable[[Tensor], Tensor]
    blocks: Sequence[Block]

    def __init__(self, config: LevelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.prefix_length = config.conditions + config.guiding_pixel
        self.patch = Linear(3 * config.sub_patch_size**2, width)
        self.condition = Linear(config.condition_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, self.prefix_length + config.tokens, width))
        self.norm_in = nn.LayerNorm(width, eps=NORM_EPSILON)
        blocks = (
            vit_block(
                width, config.heads, causal=False, dropout=config.dropout, qk_norm=config.qk_norm
            )
            for _ in range(config.blocks)
        )
        self.add_module("blocks", nn.ModuleList(blocks))
        self.norm_out = nn.LayerNorm(width, eps=NORM_EPSILON)
        if config.guiding_pixel:
            guide = PixelConfig(
                width=GUIDING_WIDTH,
                blocks=GUIDING_BLOCKS,
                heads=GUIDING_HEADS,
                condition_width=config.condition_width,
                qk_norm=config.qk_norm,
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
        selected: Selected | None = None,
        count: int = MAX_CONDITIONS,
    ) -> Conditions:
        """Return the first `count` conditions of each selected sub-patch, (N, count, D). `tokens`
        are the sub-patches, (R, T, 3, p, p) uint8; the network does not see those where `mask` (R,
        T) is True. `guides` are the patches' mean colours 0 … 255, (R, 3), needed at a level with a
        guiding pixel. `selected` are by default the masked ones."""
        x = self.patch(normalise(tokens).flatten(2))
        x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)
        x = torch.cat([*self._embed_prefix(conditions, guides), x], dim=1)
        x = self.norm_in(x + self.positions)
        x = self.norm_out(run_blocks(self.blocks, x))[:, self.prefix_length :]
        selected = mask.nonzero(as_tuple=True) if selected is None else selected
        return with_neighbours(x, selected, count)

    def prefix_inputs(self, conditions: Conditions, guides: Tensor | None) -> Tensor:
        """Return the first block's inputs at the prefix, (R, P, D). `guides` are the colours of the
        guiding pixels, (R, 3) in 0 … 255; None at a level without guiding pixels."""
        x = torch.cat(self._embed_prefix(conditions, guides), dim=1)
        return self.norm_in(x + self.positions[:, : self.prefix_length])

    def masked_inputs(self) -> Tensor:
        """Return the first block's inputs at masked sub-patches, (1, T, D), equal in all rows."""
        return self.norm_in(self.mask_token + self.positions[:, self.prefix_length :])

    def known_inputs(self, sub_patches: Tensor, numbers_N: Tensor) -> Tensor:
        """Return the first block's inputs at N known sub-patches, (N, D). `sub_patches` are (N, 3,
        p, p) uint8, and `numbers_N` are their numbers in their patch, 0 … T − 1."""
        x = self.patch(normalise(sub_patches).flatten(1))
        return self.norm_in(x + self.positions[0, self.prefix_length + numbers_N])

    def _embed_prefix(self, conditions: Conditions, guides: Tensor | None) -> list[Tensor]:
        values_RCD = conditions.values_NCD[:, : self.config.conditions]
        prefix = [self.condition(values_RCD.flip(1))]
        if self.config.guiding_pixel:
            assert guides is not None
            colours = normalise(guides[..., None, None]).flatten(1)
            prefix.insert(0, self.guide(colours)[:, None])
        return prefix


def with_neighbours(x_RTD: Tensor, selected: Selected, count: int = MAX_CONDITIONS) -> Conditions:
    """Return the first `count` conditions (N, count, D) of the `selected` sub-patches: the outputs
    `x_RTD` at the sub-patch itself, then at its top, right, bottom and left neighbours. A neighbour
    outside the grid counts as zeros."""
    row, token = selected
    neighbours, inside = neighbourhood(token, math.isqrt(x_RTD.shape[1]), count)
    return Conditions(x_RTD[row[:, None], neighbours].where(inside[..., None], 0.0))


def neighbourhood(token: Tensor, grid: int, count: int) -> tuple[Tensor, Tensor]:
    """Return two tensors (..., count) for the sub-patches numbered `token` (...) on a square grid
    of side `grid`. The first holds the numbers of the sub-patch itself and of its top, right,
    bottom and left neighbours, cut to the first `count`. The second is True where the neighbour
    lies inside the grid. Where it lies outside, its number is that of the nearest sub-patch."""
    # Sums with numbers, because a table of offsets would have to be copied to a GPU each time.
    down = torch.stack([token // grid + offset for offset, _ in _OFFSETS[:count]], dim=-1)
    right = torch.stack([token % grid + offset for _, offset in _OFFSETS[:count]], dim=-1)
    inside = (down >= 0) & (down < grid) & (right >= 0) & (right < grid)
    return down.clamp(0, grid - 1) * grid + right.clamp(0, grid - 1), inside
