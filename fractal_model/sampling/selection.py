"""Which sub-patches each iteration of a MAR level samples.

Decided here: without known pixels every row has the same number of hidden sub-patches. All numbers
then follow from the schedule, so the host need not ask the device for them.

Shapes: R rows, T sub-patches in each, N sub-patches that an iteration samples in all rows together.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fractal_model.model.mar import Selected
from fractal_model.model.randomness import ranks
from fractal_model.sampling.schedules import masking_schedule


class Selection(NamedTuple):
    """The sub-patches that one iteration samples."""

    selected: Selected
    """Row and number of each of N sub-patches, two tensors (N,), ordered by row, then by number."""
    hidden: Tensor
    """True for each sub-patch that is still hidden after the iteration, (R, T) bool."""
    remaining: Sequence[int]
    """Number of sub-patches of each row that are still hidden after the iteration."""


def select_iterations(
    scores: Tensor, iterations: int, hidden: Tensor | None = None
) -> Iterator[Selection]:
    """Yield the selection of each iteration: the hidden sub-patches with the highest of the
    `scores` (R, T), as many as the masking schedule says. `hidden` (R, T) is True where a sub-patch
    is hidden at first. None means everywhere."""
    if hidden is None:
        yield from _select_everywhere(scores, iterations)
    else:
        yield from _select_hidden(scores, iterations, hidden)


def branch_rows(row: Tensor, count: int, branches: int) -> Tensor:
    """Return the rows (G · N,) of G branches of `count` rows each, from the rows (N,) of one."""
    first = torch.arange(branches, device=row.device)[:, None] * count
    return (row + first).flatten()


def _select_everywhere(scores: Tensor, iterations: int) -> Iterator[Selection]:
    (rows, before), rank = scores.shape, ranks(scores)
    order = rank.argsort(dim=1)  # the sub-patch of each rank
    for remaining in masking_schedule(before, iterations):
        token = order[:, remaining:before].sort(dim=1).values
        row = torch.arange(rows, device=scores.device)[:, None].expand_as(token)
        selected = row.flatten(), token.flatten()
        yield Selection(selected, rank < remaining, [remaining] * rows)
        before = remaining


def _select_hidden(scores: Tensor, iterations: int, hidden: Tensor) -> Iterator[Selection]:
    schedules = [masking_schedule(count, iterations) for count in hidden.sum(1).tolist()]
    longest = max(map(len, schedules), default=0)
    padded = [schedule + (0,) * (longest - len(schedule)) for schedule in schedules]
    # Known sub-patches get the highest ranks, as if they had been sampled first.
    rank = ranks(torch.where(hidden, scores, math.inf))
    by_iteration = torch.tensor(padded, device=scores.device, dtype=torch.long).T
    for k, remaining in enumerate(by_iteration):
        after = rank < remaining[:, None]
        selected = (hidden & ~after).nonzero(as_tuple=True)
        yield Selection(selected, after, [schedule[k] for schedule in padded])
        hidden = after
