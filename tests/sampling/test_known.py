"""Sampling with known pixels: they stay, they are context, and the rest follows the schedule."""

from __future__ import annotations

import pytest
import torch

from fractal_model.common.errors import FractalError
from fractal_model.config.sampling import SamplingConfig
from fractal_model.sampling.known import KnownPixels
from fractal_model.sampling.sampler import Sampler
from fractal_model.sampling.schedules import masking_schedule
from tests.support import deeper_model, images_for, tiny_model

LABELS, SEEDS = torch.tensor([0, 1, 2, 3, 1]), [11, 12, 13, 14, 15]
GUIDED = SamplingConfig(guidance=2.0, logit_scale=1.2)


def random_known(model, *, share: float = 0.5) -> KnownPixels:
    """Known pixels in a different share for each image, with some whole patches."""
    images = images_for(model, len(LABELS))
    generator = torch.Generator().manual_seed(7)
    shares = torch.linspace(0.1, 2 * share - 0.1, len(LABELS))[:, None, None]
    mask = torch.rand(len(LABELS), *images.shape[2:], generator=generator) < shares
    mask[:3, :2, :2] = True
    return KnownPixels(images, mask)


def has_known_pixels(images: torch.Tensor, known: KnownPixels) -> bool:
    mask = known.mask[:, None].expand_as(images)
    return images[mask].equal(known.images[mask])


@pytest.mark.parametrize("iterations", ["all", "few"])
def test_known_pixels_come_back_bit_identical(kind, iterations):
    model = tiny_model(kind)
    counts = () if iterations == "all" else (3,) * len(model.levels)
    known = random_known(model)
    images = Sampler(model, GUIDED.model_copy(update={"iterations": counts}))(
        LABELS, SEEDS, known=known
    )
    assert has_known_pixels(images, known)
    assert not images.equal(known.images)


def test_an_image_of_known_pixels_only_stays_as_it_is(kind):
    model = tiny_model(kind)
    images = images_for(model, 5)
    known = KnownPixels(images, torch.ones(5, *images.shape[2:], dtype=torch.bool))
    assert Sampler(model, GUIDED)(LABELS, SEEDS, known=known).equal(images)


def test_without_a_known_pixel_sampling_is_unchanged(kind):
    model = tiny_model(kind)
    images = images_for(model, 5)
    known = KnownPixels(images, torch.zeros(5, *images.shape[2:], dtype=torch.bool))
    sampler = Sampler(model, GUIDED)
    assert sampler(LABELS, SEEDS, known=known).equal(sampler(LABELS, SEEDS))


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.8)])
@pytest.mark.parametrize("make", [tiny_model, deeper_model])
def test_cached_equals_uncached(kind, make, interval):
    model, settings = make(kind), GUIDED.model_copy(update={"guidance_interval": interval})
    known = random_known(model)
    fast = Sampler(model, settings)(LABELS, SEEDS, known=known)
    assert fast.equal(Sampler(model, settings, cached=False)(LABELS, SEEDS, known=known))


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.8)])
def test_the_same_image_in_any_batch(kind, interval):
    """Images of other known pixels have other progress, so one may have guidance before another."""
    model = tiny_model(kind)
    known = random_known(model)
    settings = GUIDED.model_copy(
        update={"iterations": (3,) * len(model.levels), "guidance_interval": interval}
    )
    sampler = Sampler(model, settings)
    together = sampler(LABELS, SEEDS, known=known)
    for i in range(5):
        one = slice(i, i + 1)
        alone = sampler(
            LABELS[one], SEEDS[one], known=KnownPixels(known.images[one], known.mask[one])
        )
        assert together[one].equal(alone)


def test_unknown_pixels_are_never_read(kind):
    model = tiny_model(kind)
    known = random_known(model)
    other = KnownPixels(
        torch.where(known.mask[:, None], known.images, 255 - known.images), known.mask
    )
    sampler = Sampler(model, GUIDED)
    assert sampler(LABELS, SEEDS, known=known).equal(sampler(LABELS, SEEDS, known=other))


def reads_known(model, *, hidden: tuple[slice, slice], changed: tuple[slice, slice]) -> bool:
    """True if known pixels at `changed` decide what is generated at `hidden`."""
    images = images_for(model, 5)
    mask = torch.ones(5, *images.shape[2:], dtype=torch.bool)
    mask[:, hidden[0], hidden[1]] = False
    other = images.clone()
    other[..., changed[0], changed[1]] = 255 - other[..., changed[0], changed[1]]
    sampler = Sampler(model, SamplingConfig(logit_scale=3.0))
    samples = [sampler(LABELS, SEEDS, known=KnownPixels(i, mask)) for i in (images, other)]
    one, two = (sample[..., hidden[0], hidden[1]] for sample in samples)
    return not one.equal(two)


FIRST, LAST = slice(0, 2), slice(2, 4)


@pytest.mark.parametrize("side", [(FIRST, LAST), (LAST, FIRST), (LAST, LAST)])
def test_mar_reads_known_patches_on_all_sides(side):
    assert reads_known(tiny_model("mar"), hidden=(FIRST, FIRST), changed=side)


def test_mar_reads_the_known_pixels_of_the_patch_itself():
    """Pixel (0, 0) is generated; the others of its patch are known and later in raster order."""
    one, two = slice(0, 1), slice(1, 2)
    assert reads_known(tiny_model("mar"), hidden=(one, one), changed=(two, two))


def test_ar_reads_what_comes_before_and_not_what_comes_after():
    model = tiny_model("ar")
    assert reads_known(model, hidden=(LAST, LAST), changed=(FIRST, FIRST))
    assert not reads_known(model, hidden=(FIRST, FIRST), changed=(LAST, LAST))


def test_the_schedule_counts_hidden_sub_patches_only():
    model = tiny_model("mar", patch_sizes=(8, 2, 1))
    images = images_for(model, 2)
    mask = torch.ones(2, 8, 8, dtype=torch.bool)
    mask[0, :4, :4] = False  # Hides 4 of 16 patches.
    mask[1, 0, 0] = False
    counts = []

    def observe(level, rows, hidden, canvas):
        if level == 0:
            counts.append(hidden.sum(1).tolist())

    sampler = Sampler(model, SamplingConfig(iterations=(3, 4)))
    sampler(LABELS[:2], SEEDS[:2], known=KnownPixels(images, mask), observe=observe)
    assert [row[0] for row in counts] == [4, *masking_schedule(4, 3)]
    assert [row[1] for row in counts] == [1, 0, 0, 0]


def test_an_observer_changes_nothing(kind):
    model, levels = tiny_model(kind), []
    observed = Sampler(model, GUIDED)(LABELS, SEEDS, observe=lambda *step: levels.append(step[0]))
    assert observed.equal(Sampler(model, GUIDED)(LABELS, SEEDS))
    assert set(levels) == set(range(len(model.levels)))


def test_known_images_of_another_shape_are_an_error():
    sampler = Sampler(tiny_model("mar"), GUIDED)
    images, mask = torch.zeros(5, 3, 4, 4, dtype=torch.uint8), torch.ones(5, 4, 4).bool()
    for bad in (
        KnownPixels(images[:4], mask),
        KnownPixels(images, mask[:, :2]),
        KnownPixels(images.float(), mask),
    ):
        with pytest.raises(FractalError, match=r"expected \(5, 3, 4, 4\) uint8"):
            sampler(LABELS, SEEDS, known=bad)
