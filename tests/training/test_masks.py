"""Random masks and guiding-pixel noise of a training pass."""

from __future__ import annotations

import pytest
import torch

from fractal_model.model.fractal import Rows
from fractal_model.training.masks import training_guides, training_masks


def test_the_number_of_masked_sub_patches_follows_a_truncated_normal():
    draw = training_masks([16, 4], torch.Generator().manual_seed(0))
    rows = Rows.whole_images(4000, torch.device("cpu"))
    counts = draw(0, rows).sum(1)
    assert counts.min() >= 1
    assert counts.max() == 16
    # All are masked if the ratio is in its top sixteenth, |z| < 1/16 / 0.25 of a half normal.
    expected = 2 * (torch.distributions.Normal(0, 1).cdf(torch.tensor(0.25)).item() - 0.5)
    assert (counts == 16).float().mean().item() == pytest.approx(expected, abs=0.03)
    masked = draw(1, rows).float().mean(0)
    assert (masked - masked.mean()).abs().max() < 0.03  # No position is masked more often.


def test_guide_noise_changes_only_how_ties_are_rounded():
    means = torch.tensor([[10.2, 99.8, 0.0], [254.5, 255.0, 100.5]]).repeat(200, 1)
    targets, inputs = training_guides(means, torch.Generator().manual_seed(0))
    assert inputs.equal(means)
    assert targets[0].tolist() == [10, 100, 0]
    assert set(targets[1::2, 0].tolist()) == {254, 255}
    assert set(targets[1::2, 1].tolist()) == {255}
