"""The iterations of a MAR level, on what does not change from one to the next.

Decided here: the inputs of the first block, and its queries, keys and values, are kept; a
sub-patch's own are computed when it becomes known, once for both branches. The last block computes
what the next level reads, and no more. `uncached.py` has the same without all this.

Shapes: G branches (2 with guidance: conditional rows, then null rows), R rows, T sub-patches after
P other positions, S = P + T, n conditions read, D width, H heads of d elements.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fractal_model.model.blocks import run_blocks
from fractal_model.model.conditions import Conditions
from fractal_model.model.mar import MARLevel, around, with_neighbours


@dataclass(frozen=True)
class MaskedRows:
    """A MAR level and the rows that it is iterated for."""

    level: MARLevel
    conditions: Conditions
    """Of (G · R) rows."""
    guides: Tensor | None
    """(G · R, 3) mean colours, for a level with a guiding pixel."""
    branches: int
    read: int
    """Conditions that the next level reads."""
    even: bool
    """True if each iteration wants as many sub-patches of every row, which known pixels may
    change."""


MaskedSteps = Callable[[Tensor, Tensor, Tensor], Conditions]
"""From a canvas (R, T, 3, p, p) that is valid where the mask (R, T) is false, the mask, and the N
sub-patches wanted (R, T), to their conditions (G · N, n, D). Each call's mask is within that of the
call before."""


class CachedMaskedSteps:
    """`MaskedSteps` that compute new sub-patches alone. Rows that are not even are computed whole,
    so that the outcome of one does not depend on how many sub-patches another wants."""

    def __init__(self, rows: MaskedRows) -> None:
        self._rows = rows
        self._level = level = rows.level
        prefix, masked = level.prefix(rows.conditions, rows.guides), level.masked()
        self._x = torch.cat([prefix, masked.expand(len(prefix), -1, -1)], dim=1)
        of_masked = self._heads(masked).expand(-1, len(prefix), -1, -1, -1)
        self._kept = torch.cat([self._heads(prefix), of_masked], dim=3)
        self._mask: Tensor | None = None

    def __call__(self, canvas: Tensor, mask: Tensor, wanted: Tensor) -> Conditions:
        self._take_in(canvas, mask)
        few = self._few(wanted)
        if few is None:
            x = self._level.norm_out(self._blocks(None))[:, self._level.prefix_length :]
            return with_neighbours(x, wanted.repeat(self._rows.branches, 1), self._rows.read)
        places, inside = around(
            few.repeat(self._rows.branches, 1), self._level.config.grid, self._rows.read
        )
        x = self._level.norm_out(self._blocks(self._level.prefix_length + places.flatten(1)))
        x = x.flatten(0, 1).unflatten(0, (-1, self._rows.read))
        return Conditions(x.where(inside.flatten(0, 1)[..., None], 0.0))

    def _few(self, wanted: Tensor) -> Tensor | None:
        """(R, n) sub-patches wanted of each row, in order, where these are as many of every row
        and, with what is read around them, fewer than all."""
        if not self._rows.even:
            return None
        token = wanted.nonzero(as_tuple=True)[1].view(len(wanted), -1)
        return token if token.shape[1] * self._rows.read < wanted.shape[1] else None

    def _take_in(self, canvas: Tensor, mask: Tensor) -> None:
        """Compute the sub-patches that have become known since the call before."""
        known = ~mask if self._mask is None else self._mask & ~mask
        row, token = known.nonzero(as_tuple=True)
        self._mask = mask
        if not len(row):
            return
        place = self._level.prefix_length + token
        x_ND = self._level.shown(canvas[row, token], token)
        heads_3NHd = self._heads(x_ND[:, None])[:, :, :, 0]
        self._x.unflatten(0, (self._rows.branches, -1))[:, row, place] = x_ND
        by_branch = self._kept.unflatten(1, (self._rows.branches, -1))
        for kept, new in zip(by_branch.unbind(0), heads_3NHd.unbind(0), strict=True):
            kept[:, row, :, place] = new[:, None]

    def _heads(self, x_BSD: Tensor) -> Tensor:
        """The first block's queries, keys and values: (3, B, H, S, d)."""
        first = self._level.blocks[0]
        return first.attention.project_heads(first.norm1(x_BSD))

    def _blocks(self, at_BQ: Tensor | None) -> Tensor:
        """(G · R, S, D) after all blocks, or (G · R, Q, D) at these positions alone."""
        query, key, value = self._kept.unbind(0)
        first, rest = self._level.blocks[0], self._level.blocks[1:]
        if len(rest) or at_BQ is None:
            return run_blocks(rest, first.mix(self._x, query, key, value), at_BQ=at_BQ)
        x = self._x.gather(1, at_BQ[..., None].expand(-1, -1, self._x.shape[-1]))
        here = at_BQ[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[-1])
        return first.mix(x, query.gather(2, here), key, value)
