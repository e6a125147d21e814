"""Which sub-patches an iteration of a MAR level samples."""

from __future__ import annotations

import pytest
import torch

from fractal_model.sampling.selection import branch_rows, select_iterations

SCORES = torch.tensor([[0.1, 0.9, 0.5, 0.7], [0.8, 0.2, 0.6, 0.4]])


def pairs(selection) -> list[tuple[int, int]]:
    row, token = selection.selected
    return list(zip(row.tolist(), token.tolist(), strict=True))


def test_the_highest_scores_come_first_and_each_sub_patch_once():
    """Four sub-patches in two iterations: floor(4 · cos(π / 4)) = 2 are left after the first."""
    first, last = select_iterations(SCORES, 2)
    assert pairs(first) == [(0, 1), (0, 3), (1, 0), (1, 2)]
    assert pairs(last) == [(0, 0), (0, 2), (1, 1), (1, 3)]
    assert first.hidden.tolist() == [[True, False, True, False], [False, True, False, True]]
    assert not last.hidden.any()
    assert (first.remaining, last.remaining) == ([2, 2], [0, 0])


@pytest.mark.parametrize("iterations", [1, 2, 3, 4])
def test_without_a_known_sub_patch_both_ways_select_the_same(iterations):
    scores = torch.rand(3, 16, generator=torch.Generator().manual_seed(0))
    everywhere = list(select_iterations(scores, iterations))
    masked = list(select_iterations(scores, iterations, torch.ones(3, 16, dtype=torch.bool)))
    assert [pairs(a) for a in everywhere] == [pairs(b) for b in masked]
    assert all(a.hidden.equal(b.hidden) for a, b in zip(everywhere, masked, strict=True))
    assert [a.remaining for a in everywhere] == [b.remaining for b in masked]


def test_known_sub_patches_are_never_selected_and_a_row_may_end_earlier():
    hidden = torch.tensor([[True, False, True, True], [False, True, False, False]])
    selections = list(select_iterations(SCORES, 3, hidden))
    assert [pairs(each) for each in selections] == [[(0, 3), (1, 1)], [(0, 2)], [(0, 0)]]
    assert [each.remaining for each in selections] == [[2, 0], [1, 0], [0, 0]]


def test_the_branches_have_the_same_rows_one_after_the_other():
    assert branch_rows(torch.tensor([0, 2, 2]), 3, 2).tolist() == [0, 2, 2, 3, 5, 5]
