"""The iterations of a MAR level, in which the first block reuses what earlier iterations computed.

Decided here: the first block's inputs, queries, keys and values stay in memory. When a sub-patch
becomes known, these four are computed for it once, for all branches. The last block computes only
the outputs that the next level reads. `uncached.py` reuses nothing and gives the same results.

Shapes: G branches of a network (2 with null rows: conditional rows, then these), R rows,
T sub-patches after P prefix positions, S = P + T, N sub-patches that an iteration samples (all rows
together), n conditions of each sub-patch, D width, H heads of d elements.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fractal_model.model.blocks import run_blocks
from fractal_model.model.conditions import Conditions
from fractal_model.model.mar import MARLevel, Selected, neighbourhood, with_neighbours
from fractal_model.sampling.selection import branch_rows


@dataclass(frozen=True)
class MaskedRows:
    """A MAR level and the rows whose sub-patches it samples."""

    level: MARLevel
    conditions: Conditions
    """Conditions of the (G · R) rows: the R rows of each of the G branches."""
    guides: Tensor | None
    """Sampled guiding pixels of the rows, (G · R, 3) in 0 … 255; None if the level has none."""
    branches: int
    """Number of branches that have conditions."""
    count: int
    """Number of conditions that the next level reads for each sub-patch."""
    even: bool
    """True if an iteration selects the same number of sub-patches in every row. It is so if no
    pixel was known before sampling."""
    known: Sequence[Selected]
    """Sub-patches that are on the canvas. The caller adds an entry after each iteration."""


MaskedIterations = Callable[[Tensor, Tensor, Selected, int], Conditions]
"""Function that computes one iteration per call. It gets the canvas (R, T, 3, p, p), the mask (R,
T) of the sub-patches that are not on the canvas yet, the N of them that this iteration samples, and
the number G of branches to compute. It returns the conditions of the selected sub-patches, (G · N,
n, D)."""


class CachedMaskedIterations:
    """`MaskedIterations` that embed each sub-patch once, when it becomes known. If rows are not
    `even`, the last block computes all outputs. A row's result then does not depend on how many
    sub-patches another row selects."""

    def __init__(self, rows: MaskedRows) -> None:
        self._rows = rows
        self._level = level = rows.level
        prefix = level.prefix_inputs(rows.conditions, rows.guides)
        masked = level.masked_inputs()
        self._inputs = torch.cat([prefix, masked.expand(len(prefix), -1, -1)], dim=1)
        masked_heads = self._project_heads(masked).expand(-1, len(prefix), -1, -1, -1)
        self._heads = torch.cat([self._project_heads(prefix), masked_heads], dim=3)
        self._embedded = 0  # number of entries of `known` that are embedded

    def __call__(
        self, canvas: Tensor, mask: Tensor, selected: Selected, branches: int
    ) -> Conditions:
        self._embed_known(canvas)
        level, rows, count = self._level, branches * len(canvas), self._rows.count
        row, token = selected
        if not self._selects_few(len(token), canvas.shape[:2].numel()):
            x = level.norm_out(self._run_blocks(rows, None))[:, level.prefix_length :]
            places = branch_rows(row, len(canvas), branches), token.repeat(branches)
            return with_neighbours(x, places, count)
        tokens = token.view(len(canvas), -1).repeat(branches, 1)
        outputs, inside = neighbourhood(tokens, level.config.grid, count)
        x = level.norm_out(self._run_blocks(rows, level.prefix_length + outputs.flatten(1)))
        x = x.flatten(0, 1).unflatten(0, (-1, count))
        return Conditions(x.where(inside.flatten(0, 1)[..., None], 0.0))

    def _selects_few(self, selected: int, all_outputs: int) -> bool:
        """False if the last block must compute all T outputs of each row: the rows may select
        different numbers of sub-patches, or the next level reads T or more outputs of a row."""
        return self._rows.even and selected * self._rows.count < all_outputs

    def _embed_known(self, canvas: Tensor) -> None:
        """Embed and store the sub-patches that have become known since the last call."""
        new = self._rows.known[self._embedded :]
        self._embedded += len(new)
        if not any(len(token) for _, token in new):
            return
        row, token = (torch.cat(numbers) for numbers in zip(*new, strict=True))
        position = self._level.prefix_length + token
        x_ND = self._level.known_inputs(canvas[row, token], token)
        heads_3NHd = self._project_heads(x_ND[:, None])[:, :, :, 0]
        self._inputs.unflatten(0, (self._rows.branches, -1))[:, row, position] = x_ND
        by_branch = self._heads.unflatten(1, (self._rows.branches, -1))
        for stored, heads_NHd in zip(by_branch.unbind(0), heads_3NHd.unbind(0), strict=True):
            stored[:, row, :, position] = heads_NHd[:, None]

    def _project_heads(self, x_BSD: Tensor) -> Tensor:
        """Return the first block's stacked queries, keys and values, (3, rows, H, S, d)."""
        first = self._level.blocks[0]
        return first.attention.project_heads(first.norm1(x_BSD))

    def _run_blocks(self, rows: int, at_BQ: Tensor | None) -> Tensor:
        """Return the output of the last block for the first `rows` rows, (G · R, S, D). With
        `at_BQ` return only the output at the positions with these numbers, (G · R, Q, D)."""
        inputs, (query, key, value) = self._inputs[:rows], self._heads[:, :rows].unbind(0)
        first, rest = self._level.blocks[0], self._level.blocks[1:]
        if len(rest) or at_BQ is None:
            return run_blocks(rest, first.mix(inputs, query, key, value), at_BQ=at_BQ)
        x = inputs.gather(1, at_BQ[..., None].expand(-1, -1, inputs.shape[-1]))
        index = at_BQ[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[-1])
        return first.mix(x, query.gather(2, index), key, value)
