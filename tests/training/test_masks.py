"""Random masks and guiding-pixel noise of a training pass."""

from __future__ import annotations

import pytest
import torch

from fractal_model.model.fractal import NO_CLASS, Rows, exact_guides
from fractal_model.training.masks import noisy_context, training_guides, training_masks
from tests.support import random_images, tiny_model


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


def test_a_floor_truncates_the_same_distribution():
    rows = Rows.whole_images(4000, torch.device("cpu"))
    counts = training_masks([16], torch.Generator().manual_seed(0), 0.7)(0, rows).sum(1)
    assert counts.min() == 12  # ⌈16 · 0.7⌉
    normal = torch.distributions.Normal(0, 1)
    inside = 2 * (normal.cdf(torch.tensor(0.3 / 0.25)).item() - 0.5)
    expected = 2 * (normal.cdf(torch.tensor(0.25)).item() - 0.5) / inside
    assert (counts == 16).float().mean().item() == pytest.approx(expected, abs=0.03)


def test_uniform_numbers_of_masks_are_spread_evenly_over_the_rows():
    generator, every = torch.Generator().manual_seed(0), []
    draw = training_masks([16], generator, "uniform")
    for _ in range(300):
        counts = draw(0, Rows.whole_images(16, torch.device("cpu"))).sum(1)
        assert sorted(counts.tolist()) == list(range(1, 17))
        every.append(counts)
    means = torch.stack(every).double().mean(0)  # A row has no number of its own.
    assert (means - 8.5).abs().max() < 4 * 4.61 / 300**0.5
    single = [draw(0, Rows.whole_images(1, torch.device("cpu"))).sum().item() for _ in range(2000)]
    assert torch.tensor(single).bincount(minlength=17)[1:].min() > 80  # 125 are expected


def test_context_noise_takes_the_same_place_of_other_rows():
    rows = torch.arange(500, dtype=torch.int16)[:, None] * torch.ones(16, dtype=torch.int16)
    places = torch.arange(16, dtype=torch.int16).expand(500, -1)
    sub_patches = torch.stack([rows, places, places], dim=2)[..., None, None]
    noisy = noisy_context(0.25, torch.Generator().manual_seed(0))(sub_patches)
    assert noisy.shape == sub_patches.shape
    assert noisy[:, :, 1:].equal(sub_patches[:, :, 1:])
    is_replaced = (noisy != sub_patches)[:, :, 0].flatten(1)
    assert is_replaced.float().mean().item() == pytest.approx(0.25, abs=0.02)
    always = noisy_context(1.0, torch.Generator().manual_seed(0))(sub_patches)
    assert (always != sub_patches)[:, :, 0].all()  # A row is never its own source.


def test_a_single_row_has_no_context_noise():
    sub_patches = torch.randint(0, 256, (1, 16, 3, 1, 1), dtype=torch.uint8)
    assert noisy_context(0.9, torch.Generator().manual_seed(0))(sub_patches) is sub_patches


@pytest.mark.parametrize(("kind", "is_changed"), [("mar", False), ("ar", True)])
def test_context_noise_changes_what_levels_read_and_no_target(kind, is_changed):
    """With all sub-patches masked a MAR level reads none, so only noise in targets would show."""
    model, images = tiny_model(kind), random_images(4, size=4)
    tokens = [level.tokens for level in model.config.levels]

    def nats(context):
        return model(
            images,
            torch.full((4,), NO_CLASS),
            masks=lambda level, rows: torch.ones(len(rows.image), tokens[level]) > 0,
            guides=exact_guides,
            context=context,
        ).pixels.nats

    noise = noisy_context(0.5, torch.Generator().manual_seed(0))
    assert nats(None).equal(nats(noise)) != is_changed


def test_guide_noise_changes_only_how_ties_are_rounded():
    means = torch.tensor([[10.2, 99.8, 0.0], [254.5, 255.0, 100.5]]).repeat(200, 1)
    targets, inputs = training_guides(means, torch.Generator().manual_seed(0))
    assert inputs.equal(means)
    assert targets[0].tolist() == [10, 100, 0]
    assert set(targets[1::2, 0].tolist()) == {254, 255}
    assert set(targets[1::2, 1].tolist()) == {255}
