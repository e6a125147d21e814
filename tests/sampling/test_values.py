"""The masking schedule, guidance and the random draw, as pure functions."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError

from fractal_model.config.sampling import SamplingConfig
from fractal_model.sampling.schedules import guidance_at, masking_schedule
from fractal_model.sampling.values import guided_logits, inverse_transform, most_likely


@pytest.mark.parametrize("tokens", [1, 4, 16, 256])
def test_every_iteration_predicts_something_and_all_sub_patches_are_predicted(tokens):
    for iterations in range(1, tokens + 1):
        masked = masking_schedule(tokens, iterations)
        predicted = [before - after for before, after in pairwise((tokens, *masked))]
        assert len(predicted) == iterations
        assert min(predicted) >= 1
        assert sum(predicted) == tokens


def test_the_schedule_has_at_most_one_iteration_for_each_sub_patch():
    assert masking_schedule(3, 64) == (2, 1, 0)
    assert masking_schedule(0, 64) == ()
    # floor(16 cos(π/2 · k/4)) for k = 1, 2, 3; nothing is masked after the last iteration.
    assert masking_schedule(16, 4) == (14, 11, 6, 0)


def test_cosine_schedule_starts_slowly():
    masked = masking_schedule(256, 64)
    assert masked[0] == 255
    assert masked[31] == 181


def test_guidance_grows_linearly():
    settings = SamplingConfig(guidance=5.0)
    assert [guidance_at(p, settings) for p in (0.0, 0.25, 1.0)] == [1.0, 2.0, 5.0]


def test_guidance_is_constant_or_follows_a_power_cosine():
    constant = SamplingConfig(guidance=5.0, guidance_schedule="constant")
    assert [guidance_at(p, constant) for p in (0.0, 0.25, 1.0)] == [5.0] * 3
    cosine = SamplingConfig(guidance=5.0, guidance_schedule="cosine")
    # The cosine is 0 where the fourth power of the progress is 1/2.
    scales = [guidance_at(p, cosine) for p in (0.0, 0.5**0.25, 1.0)]
    assert scales == pytest.approx([1.0, 3.0, 5.0])
    assert guidance_at(0.5, cosine) == pytest.approx(1 + 2 * (1 - math.cos(math.pi / 16)))


def test_outside_its_interval_there_is_no_guidance():
    settings = SamplingConfig(guidance=5.0, guidance_interval=(0.25, 0.75))
    assert [guidance_at(p, settings) for p in (0.2, 0.25, 0.75, 0.8)] == [None, 2.0, 4.0, None]


@pytest.mark.parametrize(
    ("interval", "named"),
    [
        ((0.8, 0.2), "the first number must be below the second one"),
        ((0.5, 0.5), "the first number must be below the second one"),
        ((0.0, 1.5), "less than or equal to 1"),
        ((0.5,), "required"),
    ],
)
def test_an_interval_that_is_none_is_an_error(interval, named):
    with pytest.raises(ValidationError, match=named):
        SamplingConfig(guidance_interval=interval)


def test_inverse_transform_at_the_edges():
    logits = torch.full((2, 256), -1e9)
    logits[:, 0], logits[:, 255] = 0.0, 0.0
    assert inverse_transform(logits, torch.tensor([0.0, 1 - 2**-24])).tolist() == [0, 255]
    logits = torch.zeros(1, 256)
    assert inverse_transform(logits, torch.tensor([0.5 + 1e-3])).tolist() == [128]
    # A number that was rounded up to 1 still gives a value.
    assert inverse_transform(logits, torch.tensor([1.0])).tolist() == [255]


def test_inverse_transform_draws_with_the_frequencies_of_the_softmax():
    logits = torch.randn(1, 256, generator=torch.Generator().manual_seed(0)) * 2
    uniforms = torch.rand(100_000, generator=torch.Generator().manual_seed(1))
    counts = torch.bincount(inverse_transform(logits.expand(100_000, -1), uniforms), minlength=256)
    share = logits.softmax(-1)[0]
    error = (100_000 * share * (1 - share)).sqrt() + 1
    assert ((counts - 100_000 * share).abs() < 5 * error).all()


def test_guidance_moves_away_from_null():
    logits = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    guided = guided_logits([logits], 3.0, SamplingConfig(filter_threshold=0.0))
    assert guided.tolist() == [[3.0, 0.0]]
    assert most_likely(guided, torch.zeros(1)).tolist() == [0]


def test_filter_keeps_guidance_from_raising_an_unlikely_value():
    conditional = torch.tensor([[10.0, -5.0, 9.0]])
    null = torch.tensor([[3.0, -40.0, 2.0]])
    both = torch.cat([conditional, null])
    filtered = guided_logits([both], 10.0, SamplingConfig(filter_threshold=1e-4))
    unfiltered = guided_logits([both], 10.0, SamplingConfig(filter_threshold=0.0))
    assert unfiltered.argmax() == 1  # Without the filter the unlikely value would win.
    assert filtered.softmax(-1)[0, 1] < conditional.softmax(-1)[0, 1] + 1e-6


def test_the_logit_scale_multiplies_the_logits():
    logits = torch.tensor([[1.0, 0.0]])
    scaled = guided_logits([logits], None, SamplingConfig(logit_scale=2.0))
    assert scaled.tolist() == [[2.0, 0.0]]


@pytest.mark.parametrize(
    "bad",
    [
        {"guidance": float("nan")},
        {"guidance": -1.0},
        {"guidance": float("inf")},
        {"logit_scale": 0.0},
        {"iterations": (0, 4)},
        {"filter_threshold": 1.0},
        {"temperature": 1.0},
    ],
)
def test_bad_settings_are_errors(bad):
    with pytest.raises(ValidationError, match=next(iter(bad))):
        SamplingConfig(**bad)
