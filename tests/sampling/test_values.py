"""Schedules, guidance and the draw, as pure functions."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError

from fractal_model.config.sampling import SamplingConfig
from fractal_model.sampling.schedules import guidance_at, masking_schedule
from fractal_model.sampling.values import guided_logits, inverse_transform, most_likely


@pytest.mark.parametrize("tokens", [1, 4, 16, 256])
def test_every_step_predicts_something_and_all_are_predicted(tokens):
    for steps in range(1, tokens + 1):
        left = masking_schedule(tokens, steps)
        predicted = [before - after for before, after in pairwise((tokens, *left))]
        assert len(predicted) == steps
        assert min(predicted) >= 1
        assert sum(predicted) == tokens


def test_more_steps_than_sub_patches_go_one_at_a_time():
    assert masking_schedule(3, 64) == (2, 1, 0)
    assert masking_schedule(0, 64) == ()
    # floor(16 cos(π/2 · k/4)) of k = 1, 2, 3; nothing is left after the last step.
    assert masking_schedule(16, 4) == (14, 11, 6, 0)


def test_cosine_schedule_starts_slowly():
    left = masking_schedule(256, 64)
    assert left[0] == 255
    assert left[31] == 181


def test_guidance_grows_linearly():
    assert [guidance_at(p, 5.0) for p in (0.0, 0.25, 1.0)] == [1.0, 2.0, 5.0]


def test_inverse_transform_at_the_edges():
    logits = torch.full((2, 256), -1e9)
    logits[:, 0], logits[:, 255] = 0.0, 0.0
    assert inverse_transform(logits, torch.tensor([0.0, 1 - 2**-24])).tolist() == [0, 255]
    logits = torch.zeros(1, 256)
    assert inverse_transform(logits, torch.tensor([0.5 + 1e-3])).tolist() == [128]
    # Rounded up to 1, a number still gives a value.
    assert inverse_transform(logits, torch.tensor([1.0])).tolist() == [255]


def test_inverse_transform_frequencies():
    logits = torch.randn(1, 256, generator=torch.Generator().manual_seed(0)) * 2
    uniforms = torch.rand(100_000, generator=torch.Generator().manual_seed(1))
    found = torch.bincount(inverse_transform(logits.expand(100_000, -1), uniforms), minlength=256)
    share = logits.softmax(-1)[0]
    error = (100_000 * share * (1 - share)).sqrt() + 1
    assert ((found - 100_000 * share).abs() < 5 * error).all()


def test_guidance_moves_away_from_null():
    logits = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    found = guided_logits(logits, 3.0, SamplingConfig(filter_threshold=0.0))
    assert found.tolist() == [[3.0, 0.0]]
    assert most_likely(found, torch.zeros(1)).tolist() == [0]


def test_filter_keeps_guidance_from_raising_an_unlikely_value():
    conditional = torch.tensor([[10.0, -5.0, 9.0]])
    null = torch.tensor([[3.0, -40.0, 2.0]])
    both = torch.cat([conditional, null])
    kept = guided_logits(both, 10.0, SamplingConfig(filter_threshold=1e-4))
    raised = guided_logits(both, 10.0, SamplingConfig(filter_threshold=0.0))
    assert raised.argmax() == 1  # without the filter the unlikely value would win
    assert kept.softmax(-1)[0, 1] < conditional.softmax(-1)[0, 1] + 1e-6


def test_logit_scale_sharpens():
    logits = torch.tensor([[1.0, 0.0]])
    found = guided_logits(logits, None, SamplingConfig(logit_scale=2.0))
    assert found.tolist() == [[2.0, 0.0]]


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
def test_bad_settings(bad):
    with pytest.raises(ValidationError, match=next(iter(bad))):
        SamplingConfig(**bad)
