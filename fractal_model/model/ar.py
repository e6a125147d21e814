"""The autoregressive level, which predicts its sub-patches one after the other in raster order.

The output at position t is the condition of sub-patch t. It depends on the condition from the level
above and on the sub-patches 0 … t−1, so the last sub-patch is never an input.

Shapes: R rows, T sub-patches of 3 × p × p, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fractal_model.config.model import LevelConfig
from fractal_model.model.attention import FixedCache, KeyValueCache
from fractal_model.model.blocks import NORM_EPSILON, Block, ar_block, run_blocks
from fractal_model.model.conditions import Conditions
from fractal_model.model.kernels.linear import Linear
from fractal_model.model.patches import normalise
from fractal_model.model.rotary import rotary_factors


class ARLevel(nn.Module):
    """A causal transformer over the sub-patches of a patch."""

    blocks: Sequence[Block]
    rotary: Tensor

    def __init__(self, config: LevelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.patch = Linear(3 * config.sub_patch_size**2, width)
        self.condition = Linear(config.condition_width, width)
        self.positions = nn.Parameter(torch.zeros(1, config.tokens + 1, width))
        self.norm_in = nn.LayerNorm(width, eps=NORM_EPSILON)
        blocks = (
            ar_block(width, config.heads, config.dropout, qk_norm=config.qk_norm)
            for _ in range(config.blocks)
        )
        self.add_module("blocks", nn.ModuleList(blocks))
        self.norm_out = nn.LayerNorm(width, eps=NORM_EPSILON)
        factors = rotary_factors(config.grid, width // config.heads)
        self.register_buffer("rotary", factors, persistent=False)

    def forward(self, tokens: Tensor, conditions: Conditions) -> Conditions:
        """Return one condition for each sub-patch, (R · T, 1, D), row by row. `tokens` are the true
        sub-patches, (R, T, 3, p, p) uint8. Only condition 0 of each row is read."""
        first = self.first_token(conditions)[:, None]
        x = torch.cat([first, self.patch(normalise(tokens[:, :-1]).flatten(2))], dim=1)
        x = self.norm_in(x + self.positions[:, :-1])
        x = self.norm_out(run_blocks(self.blocks, x, rotary=self.rotary[:-1]))
        return Conditions(x.flatten(0, 1)[:, None])

    def first_token(self, conditions: Conditions) -> Tensor:
        """Embed condition 0 as the input token (R, D) from which `step` predicts sub-patch 0."""
        return self.condition(conditions.middle)

    def next_token(self, sub_patches: Tensor) -> Tensor:
        """Embed the newest sub-patches, (R, 3, p, p) uint8, as input token (R, D) of `step`."""
        return self.patch(normalise(sub_patches).flatten(1))

    def step(self, token_RD: Tensor, caches: list[KeyValueCache]) -> Conditions:
        """Return the condition of the next sub-patch, (R, 1, D). `token_RD` comes from
        `first_token` for sub-patch 0, afterwards from `next_token` of the sub-patch before.
        `caches`, one for each block, hold the keys and values of the earlier steps."""
        t = caches[0].length
        x = self.norm_in(token_RD[:, None] + self.positions[:, t : t + 1])
        x = run_blocks(self.blocks, x, rotary=self.rotary[t : t + 1], caches=caches)
        return Conditions(self.norm_out(x))

    def step_at(self, token_RD: Tensor, caches: list[FixedCache]) -> Conditions:
        """Return what `step` returns, (R, 1, D), for the sub-patch at the caches' `position`. No
        shape depends on the position, so the function can be compiled once."""
        position = caches[0].position
        x = self.norm_in(token_RD[:, None] + self.positions.index_select(1, position))
        x = run_blocks(self.blocks, x, rotary=self.rotary.index_select(0, position), caches=caches)
        return Conditions(self.norm_out(x))
