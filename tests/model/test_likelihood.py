"""The any-order bound is unbiased, stratified and independent of batches."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from fractal_model.model import likelihood as module
from fractal_model.model.fractal import NO_CLASS, Rows, exact_guides
from fractal_model.model.likelihood import Likelihood, StratifiedMasks, mask_seeds, pass_bits
from fractal_model.model.losses import nats_by_term, training_loss
from fractal_model.training.masks import training_masks
from tests.benchmarks.likelihood_variance import ESTIMATORS, SHARED, STRATIFIED, mean_bits
from tests.support import random_images, tiny_config, tiny_model


def null_labels(count):
    return torch.full((count,), NO_CLASS)


def test_bound_equals_the_expectation_over_all_masks():
    """A model of one level with four sub-patches has 15 masks, which are all computed."""
    model = tiny_model("mar", patch_sizes=(2, 1), generators=("mar",), sharpen=30.0)
    images = random_images(1, size=2)
    exact = 0.0
    for count in range(1, 5):
        subsets = list(itertools.combinations(range(4), count))
        for subset in subsets:
            mask = torch.zeros(1, 4, dtype=torch.bool)
            mask[0, list(subset)] = True
            with torch.no_grad():
                outcome = model(
                    images, null_labels(1), masks=lambda level, rows, m=mask: m, guides=exact_guides
                )
            exact += nats_by_term(outcome, 1).sum().item() / len(subsets) / 4 / math.log(2)
    estimates = torch.cat(
        [
            pass_bits(model, images, [seed], passes=4, labels=null_labels(1)).mean(1)
            for seed in range(200)
        ]
    )
    error = estimates.std().item() / math.sqrt(len(estimates))
    assert error < 0.02 * exact
    assert estimates.mean().item() == pytest.approx(exact, abs=4 * error)


@pytest.mark.parametrize("passes", [4, 16])
def test_mask_counts_are_stratified_over_the_passes(passes):
    """Over the passes, the mask counts of each patch are evenly spread over 1 … 16."""
    config = tiny_config("mar", patch_sizes=(8, 4, 1))
    rows = Rows(torch.zeros(4).long(), torch.tensor([0, 0, 4, 4]), torch.tensor([0, 4, 0, 4]))
    counts = []
    for number in range(passes):
        masks = StratifiedMasks(config, [7], passes, torch.device("cpu"))
        counts.append(masks.mask_source(number)(1, rows).sum(1))
    counts = torch.stack(counts)
    assert counts.min() >= 1
    assert counts.max() <= 16
    for patch in counts.T:
        bands = ((patch - 1) * passes // 16).sort().values
        assert bands.tolist() == list(range(passes))


def test_counts_are_uniform_over_images():
    config = tiny_config("mar", patch_sizes=(2, 1), generators=("mar",))
    rows = Rows.whole_images(400, torch.device("cpu"))
    masks = StratifiedMasks(config, list(range(400)), 1, torch.device("cpu"))
    frequencies = torch.bincount(masks.mask_source(0)(0, rows).sum(1), minlength=5)[1:]
    assert frequencies.sum() == 400
    assert ((frequencies - 100).abs() < 4 * math.sqrt(400 * 0.25 * 0.75)).all()


@pytest.mark.parametrize("patch_sizes", [(4, 1), (8, 4, 2, 1)])
@pytest.mark.parametrize("passes", [1, 3, 16])
def test_counts_of_each_level_are_uniform_and_independent_over_the_passes(patch_sizes, passes):
    """Over many seeds, each combination of a patch's count and the counts above it is as frequent
    as the others."""
    levels = len(patch_sizes) - 1
    config = tiny_config("mar", patch_sizes=patch_sizes, generators=("mar",) * levels)
    images = 640 // passes
    top_left = Rows(torch.arange(images), *torch.zeros(2, images).long())
    tokens = [level.tokens for level in config.levels]
    joint = torch.zeros(tokens)
    masks = StratifiedMasks(config, mask_seeds(3, range(images)), passes, torch.device("cpu"))
    for number in range(passes):
        counts = [masks.mask_source(number)(i, top_left).sum(1) - 1 for i in range(levels)]
        joint.index_put_(counts, torch.ones(images), accumulate=True)
    expected = images * passes / joint.numel()
    chi_square = ((joint - expected) ** 2 / expected).sum().item()
    freedom = joint.numel() - 1  # Latin hypercube sampling can only make chi-square smaller.
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("passes", [1, 4, 5])
def test_two_levels_give_the_expectation_over_all_masks(passes):
    """All masks of level 0 with all masks below are compared with the mean over many seeds. If a
    lower mask depended on the mask above, the mean would be different."""
    model, images = _mask_dependent_model(), random_images(1, size=4, seed=2)
    exact = _exact_bound(model, images)
    seeds, batch = mask_seeds(0, range(800 // passes)), 200
    estimates = torch.cat(
        [
            pass_bits(
                model,
                images.expand(len(part), -1, -1, -1),
                part,
                passes=passes,
                labels=null_labels(len(part)),
            ).mean(1)
            for part in (seeds[i : i + batch] for i in range(0, len(seeds), batch))
        ]
    )
    error = estimates.std().item() / math.sqrt(len(estimates))
    assert error < 0.02 * exact
    assert estimates.mean().item() == pytest.approx(exact, abs=4 * error)


def _mask_dependent_model():
    """Return a model whose loss depends strongly on the mask."""
    return tiny_model("mar", sharpen=30.0)


def _exact_bound(model, images):
    """Compute the bound for one 4 × 4 image, in bits per dimension, from all 15 masks of level 0
    and all 15 masks below."""
    total = 0.0
    masks = [
        (torch.tensor([token in subset for token in range(4)]), 1 / math.comb(4, count) / 4)
        for count in range(1, 5)
        for subset in itertools.combinations(range(4), count)
    ]
    for top, top_probability in masks:
        for below, probability in masks:

            def source(level, rows, top=top, below=below):
                return (top if level == 0 else below).expand(len(rows.image), 4)

            with torch.no_grad():
                outcome = model(images, null_labels(1), masks=source, guides=exact_guides)
            # The bound is a sum over patches, so all patches may have the same mask.
            total += nats_by_term(outcome, 1).sum().item() * top_probability * probability
    return total / math.log(2)


def test_spread_is_less_than_half_of_that_of_a_shared_count():
    """The spread is the standard deviation of a data set's mean over mask seeds, at the same number
    of passes. The model has learned black and white images, so the bits of a patch depend on how
    much of the image is visible, and so on the mask counts."""
    images = torch.zeros(48, 3, 4, 4, dtype=torch.uint8)
    images[::2] = 255
    model = _trained(images)

    def spread(name):
        options = {"passes": 2, "make_masks": ESTIMATORS[name]}
        means = [mean_bits(model, images, seed=seed, **options) for seed in range(24)]
        return torch.stack(means).std()

    assert spread(STRATIFIED) < 0.5 * spread(SHARED)


def _trained(images):
    model = tiny_model("mar", sharpen=1.0).train()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        outcome = model(
            images,
            null_labels(len(images)),
            masks=training_masks([4, 4], generator),
            guides=exact_guides,
        )
        training_loss(outcome, red_weight=1.0).backward()
        optimizer.step()
    return model.eval()


def test_monte_carlo_error_is_not_below_the_spread_over_mask_seeds():
    model, images = _mask_dependent_model(), random_images(6, size=4, seed=4)
    likelihoods = [
        Likelihood(
            pass_bits(model, images, mask_seeds(seed, range(6)), passes=6, labels=null_labels(6)),
            False,
        )
        for seed in range(50)
    ]
    spread = torch.tensor([likelihood.mean for likelihood in likelihoods]).std().item()
    errors = [likelihood.monte_carlo_error for likelihood in likelihoods]
    assert 0.8 * spread < torch.tensor(errors).mean().item() < 5 * spread


def test_monte_carlo_error_is_0_if_exact_and_nan_for_one_pass():
    assert Likelihood(torch.ones(3, 1), exact=True).monte_carlo_error == 0
    assert math.isnan(Likelihood(torch.ones(3, 1), exact=False).monte_carlo_error)


def test_monte_carlo_error_comes_from_consecutive_passes():
    """The squared differences of the two images' three passes are 1 + 4 and 0; each sum is divided
    by 2 · 3 · 2."""
    bits = torch.tensor([[1.0, 2.0, 4.0], [3.0, 3.0, 3.0]], dtype=torch.float64)
    error = Likelihood(bits, exact=False).monte_carlo_error
    assert error == pytest.approx(math.sqrt(5 / 12) / 2)


def test_values_of_sub_patches_are_reordered_row_major_in_the_image():
    """An image of 4 × 4 numbers has four patches of four sub-patches each."""
    image = torch.arange(16)
    by_patch = image.view(2, 2, 2, 2).transpose(1, 2).reshape(1, 1, 4, 4)
    assert module._in_image_order(by_patch, 2).flatten().equal(image)


def test_different_seeds_give_different_mask_seeds():
    assert not set(mask_seeds(0, range(1000))) & set(mask_seeds(1, range(1000)))


def test_guiding_pixels_are_weighted_by_their_number():
    """One per 4 × 4 patch is 1/16 of the number of pixels, and one per 2 × 2 patch is 1/4."""
    model = tiny_model("guided")

    def mask_all(level, rows):
        return torch.ones(len(rows.image), 4, dtype=torch.bool)

    with torch.no_grad():
        outcome = model(random_images(1), null_labels(1), masks=mask_all, guides=exact_guides)
    assert [values.per_image_value for values in outcome.guides] == [1 / 16, 1 / 4]
    expected = outcome.pixels.nats.double().mean()
    expected += sum(v.nats.double().mean() * v.per_image_value for v in outcome.guides)
    assert nats_by_term(outcome, 1).sum().item() == pytest.approx(expected.item(), rel=1e-6)


def test_ar_is_exact_in_one_pass():
    model, images = tiny_model("ar"), random_images(2, size=4)
    bits = pass_bits(model, images, [0, 1], passes=8, labels=null_labels(2))
    assert bits.shape == (2, 1)
    assert bits.equal(pass_bits(model, images, [5, 6], passes=1, labels=null_labels(2)))


def test_the_model_stays_in_training_mode():
    model = tiny_model("mar").train()
    pass_bits(model, random_images(1, size=4), [0], passes=1, labels=null_labels(1))
    assert model.training
