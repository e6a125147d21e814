"""The any-order bound: unbiased, stratified, independent of batches."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from fractal_model.model.fractal import NO_CLASS, Rows, exact_guides
from fractal_model.model.likelihood import StratifiedMasks, image_bits, likelihood
from fractal_model.model.losses import nats_per_value
from fractal_model.randomness import stream_seed
from tests.conftest import images_for, random_images, tiny_config, tiny_model


def null(count):
    return torch.full((count,), NO_CLASS)


def test_bound_equals_the_expectation_over_all_masks():
    """One level of four sub-patches: all 15 masks can be enumerated."""
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
                    images, null(1), masks=lambda level, rows, m=mask: m, guides=exact_guides
                )
            exact += nats_per_value(outcome, 1).item() / len(subsets) / 4 / math.log(2)
    drawn = torch.cat(
        [image_bits(model, images, [seed], passes=4, labels=null(1)) for seed in range(200)]
    )
    error = drawn.std().item() / math.sqrt(len(drawn))
    assert error < 0.02 * exact
    assert drawn.mean().item() == pytest.approx(exact, abs=4 * error)


@pytest.mark.parametrize("passes", [4, 16])
def test_mask_counts_are_stratified_over_the_passes(passes):
    """Each patch is masked evenly over the passes, each count once or `passes` / T times."""
    config = tiny_config("mar", patch_sizes=(8, 4, 1))
    rows = Rows(torch.zeros(4).long(), torch.tensor([0, 0, 4, 4]), torch.tensor([0, 4, 0, 4]))
    counts = []
    for number in range(passes):
        masks = StratifiedMasks(config, [7], number, passes, torch.device("cpu"))
        counts.append(masks(1, rows).sum(1))
    counts = torch.stack(counts)
    assert counts.min() >= 1
    assert counts.max() <= 16
    for patch in counts.T:
        bands = ((patch - 1) * passes // 16).sort().values
        assert bands.tolist() == list(range(passes))


def test_counts_and_orders_have_streams_of_their_own():
    keys = [(role, seed, number) for role in (1, 2) for seed in range(100) for number in range(4)]
    first = {
        tuple(torch.rand(2, generator=torch.Generator().manual_seed(stream_seed(*key))).tolist())
        for key in keys
    }
    assert len(first) == len(keys)


def test_marginal_count_is_uniform():
    config = tiny_config("mar", patch_sizes=(2, 1), generators=("mar",))
    rows = Rows.whole_images(400, torch.device("cpu"))
    masks = StratifiedMasks(config, list(range(400)), 0, 1, torch.device("cpu"))
    found = torch.bincount(masks(0, rows).sum(1), minlength=5)[1:]
    assert found.sum() == 400
    assert ((found - 100).abs() < 4 * math.sqrt(400 * 0.25 * 0.75)).all()


def test_does_not_depend_on_batches(kind):
    model = tiny_model(kind)
    images = images_for(model, 5)
    labels, indices = torch.arange(5) % 4, torch.arange(5)

    def measure(size):
        parts = [slice(i, i + size) for i in range(0, 5, size)]
        batches = [(images[p], labels[p], indices[p]) for p in parts]
        return likelihood(model, batches, passes=2, seed=3).per_image

    assert measure(5).equal(measure(2))


def test_guiding_pixels_weigh_what_there_are_of_them():
    """One per 4 × 4 patch is 1/16 of the values, one per 2 × 2 patch a quarter."""
    model = tiny_model("guided")

    def everything(level, rows):
        return torch.ones(len(rows.image), 4, dtype=torch.bool)

    with torch.no_grad():
        outcome = model(random_images(1), null(1), masks=everything, guides=exact_guides)
    assert [values.per_image_value for values in outcome.guides] == [1 / 16, 1 / 4]
    by_hand = outcome.pixels.nats.double().mean()
    by_hand += sum(v.nats.double().mean() * v.per_image_value for v in outcome.guides)
    assert nats_per_value(outcome, 1).item() == pytest.approx(by_hand.item(), rel=1e-6)


def test_ar_is_exact_in_one_pass():
    model, images = tiny_model("ar"), random_images(2, size=4)
    batches = [(images, torch.zeros(2).long(), torch.arange(2))]
    found = likelihood(model, batches, passes=8, seed=0)
    assert found.passes == 1
    assert found.per_image.equal(likelihood(model, batches, passes=1, seed=9).per_image)
    assert found.standard_error == pytest.approx(found.per_image.std().item() / math.sqrt(2))


def test_the_model_is_left_in_its_mode():
    model = tiny_model("mar").train()
    image_bits(model, random_images(1, size=4), [0], passes=1, labels=null(1))
    assert model.training
