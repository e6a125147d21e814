"""The sampler: cached equals uncached, and an image depends on its own seed only."""

from __future__ import annotations

import pytest
import torch

from fractal_model.common.errors import FractalError
from fractal_model.config.sampling import SamplingConfig
from fractal_model.model.fractal import NO_CLASS
from fractal_model.sampling.known import KnownPixels
from fractal_model.sampling.sampler import Sampler
from tests.support import deeper_model, tiny_model

LABELS = torch.tensor([0, 1, 2, 3, 1])
SEEDS = [11, 12, 13, 14, 15]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_cached_equals_the_uncached_reference_path(kind, guidance):
    model, settings = tiny_model(kind), SamplingConfig(guidance=guidance, logit_scale=1.1)
    fast = Sampler(model, settings)(LABELS, SEEDS)
    slow = Sampler(model, settings, cached=False)(LABELS, SEEDS)
    assert fast.dtype == torch.uint8
    assert fast.float().std() > 1
    assert fast.equal(slow)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_cached_equals_uncached_with_more_blocks_than_one(kind, qk_norm):
    model = deeper_model(kind, qk_norm=qk_norm)
    settings = SamplingConfig(guidance=3.0)
    fast = Sampler(model, settings)(LABELS, SEEDS)
    assert fast.equal(Sampler(model, settings, cached=False)(LABELS, SEEDS))


@pytest.mark.parametrize("interval", [(0.3, 0.7), (0.4, 1.0)])
def test_cached_equals_uncached_with_an_interval_of_guidance(kind, interval):
    model = deeper_model(kind)
    settings = SamplingConfig(guidance=3.0, guidance_interval=interval)
    fast = Sampler(model, settings)(LABELS[:2], SEEDS[:2])
    assert fast.equal(Sampler(model, settings, cached=False)(LABELS[:2], SEEDS[:2]))


def test_outside_the_interval_guidance_changes_nothing(kind):
    """The steps after the interval are those of a model without guidance."""
    model, half = tiny_model(kind), (0.0, 0.5)
    plain = first_step_images(model, SamplingConfig())
    late = first_step_images(model, SamplingConfig(guidance=9.0, guidance_interval=(0.6, 1.0)))
    early = first_step_images(model, SamplingConfig(guidance=9.0, guidance_interval=half))
    assert late.equal(plain)
    assert not early.equal(plain)
    never = SamplingConfig(guidance=9.0, guidance_interval=(0.01, 0.02))
    assert Sampler(model, never)(LABELS, SEEDS).equal(
        Sampler(model, SamplingConfig())(LABELS, SEEDS)
    )


def first_step_images(model, settings) -> torch.Tensor:
    """What is on level 0's canvas after its first step."""
    seen = []
    Sampler(model, settings)(
        LABELS, SEEDS, observe=lambda level, *step: level or seen.append(step[2].clone())
    )
    return seen[1]


def test_outside_the_interval_the_other_branch_is_not_computed(kind, monkeypatch):
    """Only an AR level 0 computes it in the steps before the interval, for its cache."""
    model, rows = tiny_model(kind), []
    network = type(model.pixel)
    first_token = network.first_token

    def count(self, conditions):
        if self is model.pixel:
            rows.append(len(conditions))
        return first_token(self, conditions)

    monkeypatch.setattr(network, "first_token", count)
    counts = {}
    for interval in ((0.0, 1.0), (0.6, 1.0), (0.01, 0.02)):
        rows.clear()
        settings = SamplingConfig(guidance=3.0, guidance_interval=interval)
        Sampler(model, settings)(LABELS, SEEDS)
        counts[interval] = sum(rows)
    pixels = len(LABELS) * model.config.image_size**2
    assert counts[0.0, 1.0] == 2 * pixels
    assert counts[0.01, 0.02] == pixels
    # Level 0 has four sub-patches, the last two of which have guidance.
    assert counts[0.6, 1.0] == 1.5 * pixels


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_schedules_change_the_images(schedule):
    model = tiny_model("mar")
    plain = Sampler(model, SamplingConfig(guidance=3.0))(LABELS, SEEDS)
    settings = SamplingConfig(guidance=3.0, guidance_schedule=schedule)
    images = Sampler(model, settings)(LABELS, SEEDS)
    assert not images.equal(plain)
    assert images.equal(Sampler(model, settings, cached=False)(LABELS, SEEDS))


@pytest.mark.parametrize(
    ("qk_norm", "interval"), [(False, (0.0, 1.0)), (True, (0.0, 1.0)), (False, (0.4, 0.8))]
)
def test_a_seed_gives_the_same_image_in_any_batch(kind, qk_norm, interval):
    settings = SamplingConfig(guidance=2.0, guidance_interval=interval)
    sampler = Sampler(tiny_model(kind, qk_norm=qk_norm), settings)
    together = sampler(LABELS, SEEDS)
    alone = torch.cat([sampler(LABELS[i : i + 1], SEEDS[i : i + 1]) for i in range(5)])
    backwards = sampler(LABELS.flip(0), SEEDS[::-1]).flip(0)
    assert together.equal(alone)
    assert together.equal(backwards)


def test_a_seed_gives_the_same_image_with_any_number_of_threads():
    sampler = Sampler(tiny_model("mar"), SamplingConfig(guidance=2.0))
    threads = torch.get_num_threads()
    images = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            images.append(sampler(LABELS, SEEDS))
    finally:
        torch.set_num_threads(threads)
    assert images[0].equal(images[1])


def test_seed_class_and_guidance_change_the_image():
    model = tiny_model("mar")
    sampler = Sampler(model, SamplingConfig(guidance=2.0))
    image = sampler(LABELS[:1], [5])
    assert not image.equal(sampler(LABELS[:1], [6]))
    assert not image.equal(sampler(LABELS[1:2], [5]))
    assert not image.equal(Sampler(model, SamplingConfig(guidance=4.0))(LABELS[:1], [5]))


def test_unconditional_images_do_not_depend_on_guidance():
    model, null = tiny_model("mar"), torch.full((2,), NO_CLASS)
    plain = Sampler(model, SamplingConfig(guidance=1.0))(null, [1, 2])
    assert plain.equal(Sampler(model, SamplingConfig(guidance=5.0))(null, [1, 2]))


def test_fewer_iterations_make_other_images_of_the_same_size():
    model = tiny_model("mar")
    quick = Sampler(model, SamplingConfig(iterations=(1, 3)))(LABELS, SEEDS)
    assert quick.shape == (5, 3, 4, 4)
    assert not quick.equal(Sampler(model, SamplingConfig())(LABELS, SEEDS))


def test_samples_follow_the_model_distribution():
    """The model's logits are its biases, so the frequencies of values match their softmax."""
    model = tiny_model("ar", patch_sizes=(2, 1), generators=("ar",))
    with torch.no_grad():
        for codebook, bias in zip(model.pixel.codebooks, model.pixel.biases, strict=True):
            codebook.weight.zero_()
            bias.fill_(-1e9)
            bias[0, [10, 20, 30]] = torch.tensor([0.5, 0.3, 0.2]).log()
    images = Sampler(model, SamplingConfig())(torch.zeros(500).long(), range(500))
    for value, share in ((10, 0.5), (20, 0.3), (30, 0.2)):
        frequency = (images == value).float().mean().item()
        assert frequency == pytest.approx(share, abs=4 * (share * (1 - share) / 6000) ** 0.5)


def test_inputs_move_to_the_device_of_the_model(monkeypatch):
    """Classes, noise and known images come from the CPU, wherever the model is."""
    model, moved = tiny_model("mar"), []
    device = torch.device("cpu", 0)  # Stands for another device: it is not equal to "cpu".
    monkeypatch.setattr(type(model), "device", device)
    to = torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor, "to", lambda tensor, *a, **k: moved.append(a) or to(tensor, *a, **k)
    )
    known = KnownPixels(torch.zeros(2, 3, 4, 4).byte(), torch.zeros(2, 4, 4).bool())
    Sampler(model, SamplingConfig())(LABELS[:2], SEEDS[:2], known=known)
    assert moved.count((device,)) >= 4


def test_sampling_leaves_the_model_in_training_mode():
    model = tiny_model("ar").train()
    Sampler(model, SamplingConfig())(LABELS[:1], [0])
    assert model.training


def test_arguments_that_do_not_fit_are_errors():
    model = tiny_model("mar")
    sampler = Sampler(model, SamplingConfig())
    with pytest.raises(FractalError, match="labels: 5, seeds: 2"):
        sampler(LABELS, [1, 2])
    with pytest.raises(FractalError, match="labels: 0, seeds: 0; give one seed per label"):
        sampler(LABELS[:0], [])
    with pytest.raises(FractalError, match=r"0 … 3"):
        sampler(torch.tensor([4]), [1])
    with pytest.raises(FractalError, match="seed 4294967296"):
        sampler(LABELS[:1], [2**32])
    with pytest.raises(FractalError, match=r"give 1 … 4"):
        Sampler(model, SamplingConfig(iterations=(5, 1)))
    with pytest.raises(FractalError, match="takes 2, one for each level"):
        Sampler(model, SamplingConfig(iterations=(4,)))
