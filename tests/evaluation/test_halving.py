"""Successive halving: which settings are compared, with how many images, and which stay."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from fractal_model.common.errors import FractalError
from fractal_model.common.fingerprint import fingerprint
from fractal_model.config.evaluation import SweepConfig
from fractal_model.config.params import load_params
from fractal_model.config.sampling import SamplingConfig
from fractal_model.config.serving import ServingConfig
from fractal_model.evaluation.halving import Rung, image_count, lowest_indices, plan_rungs
from fractal_model.evaluation.sweep_settings import describe_setting, setting_fingerprint
from tests.support.params import SHIPPED

SAMPLING = SamplingConfig(guidance=2.0, logit_scale=1.1, iterations=(16, 4), order="raster")
SERVED = ServingConfig(weights="ema-0.9", sampling=SAMPLING)


def test_a_sweep_tries_every_combination_once_and_keeps_the_other_settings():
    sweep = SweepConfig(guidance=(1, 2, 2.0), logit_scale=(1.0, 1.1), iterations=((16, 4), (8, 4)))
    settings = [s.sampling for s in sweep.settings(SERVED)]
    assert len(settings) == 2 * 2 * 2
    assert {(s.guidance, s.logit_scale, s.iterations) for s in settings} == {
        (w, s, i) for w in (1, 2) for s in (1.0, 1.1) for i in ((16, 4), (8, 4))
    }
    assert {s.order for s in settings} == {"raster"}


def test_a_sweep_without_iterations_uses_those_of_the_size():
    settings = SweepConfig(guidance=(3,), logit_scale=(1,)).settings(SERVED)
    assert [(s.weights, s.sampling.iterations) for s in settings] == [("ema-0.9", (16, 4))]


def test_a_sweep_tries_intervals_and_schedules_of_guidance():
    intervals, schedules = ((0.0, 1.0), (0.2, 0.8)), ("linear", "constant")
    sweep = SweepConfig(
        guidance=(3,),
        logit_scale=(1,),
        guidance_interval=intervals,
        guidance_schedule=schedules,
    )
    settings = [s.sampling for s in sweep.settings(SERVED)]
    pairs = [(s.guidance_interval, s.guidance_schedule) for s in settings]
    assert pairs == [(i, s) for i in intervals for s in schedules]


def test_an_interval_and_a_schedule_are_named_if_they_are_not_the_size_s():
    size = load_params(SHIPPED).size("digits")
    changes = {"guidance_interval": (0.2, 0.8), "guidance_schedule": "constant"}
    sampling = size.sampling.model_copy(update=changes)
    setting = size.serving.model_copy(update={"sampling": sampling})
    text = "guidance 2, logit scale 1.1, interval 0.2 … 0.8, schedule constant"
    assert describe_setting(setting, size) == text
    own = size.model_copy(update={"sampling": sampling})
    assert describe_setting(setting, own) == "guidance 2, logit scale 1.1"


def test_a_sweep_tries_each_of_its_weights_and_one_after_the_other():
    sweep = SweepConfig(guidance=(1, 2), logit_scale=(1,), weights=("ema-0.90", "model", "ema-0.9"))
    settings = [(s.weights, s.sampling.guidance) for s in sweep.settings(SERVED)]
    assert settings == [("ema-0.9", 1), ("ema-0.9", 2), ("model", 1), ("model", 2)]
    with pytest.raises(ValidationError, match="1,200 combinations"):
        SweepConfig(guidance=tuple(range(1, 301)), logit_scale=(1, 2), weights=("model", "ema"))


def test_only_other_weights_than_the_evaluations_are_part_of_a_settings_name():
    size = load_params(SHIPPED).size("digits")
    averaged = size.serving.model_copy(update={"weights": "ema-0.9"})
    assert setting_fingerprint(size.serving, size) == fingerprint(size.sampling)
    assert setting_fingerprint(averaged, size) != setting_fingerprint(size.serving, size)
    assert describe_setting(size.serving, size) == "guidance 2, logit scale 1.1"
    assert describe_setting(averaged, size) == "guidance 2, logit scale 1.1, weights ema-0.9"


def test_rungs_equal_those_computed_by_hand():
    """15 settings with 1 image of each class, 5 with 3, 2 with 9: 15 + 5 · 2 + 2 · 6 = 37."""
    rungs = plan_rungs(15, classes=1000, samples=50_000, keep=3, largest=50)
    assert rungs == (Rung(15, 1), Rung(5, 3), Rung(2, 9))
    assert image_count(rungs, 1000) == 37_000


@pytest.mark.parametrize("settings", [1, 2, 7, 24, 40])
@pytest.mark.parametrize("keep", [2, 3, 5])
@pytest.mark.parametrize("samples", [2_000, 4_321, 50_000])
def test_the_rungs_use_the_whole_budget_and_not_more(settings, keep, samples):
    rungs = plan_rungs(settings, classes=10, samples=samples, keep=keep, largest=10**6)
    assert image_count(rungs, 10) <= samples
    larger = [Rung(r.settings, r.per_class // rungs[0].per_class) for r in rungs]
    larger = [Rung(r.settings, r.per_class * (rungs[0].per_class + 1)) for r in larger]
    assert image_count(larger, 10) > samples
    assert rungs[0].settings == settings
    assert rungs[-1].settings <= keep


def test_no_preview_is_larger_than_the_full_protocol():
    rungs = plan_rungs(9, classes=10, samples=10_000, keep=3, largest=30)
    assert rungs == (Rung(9, 30),)


def test_the_error_about_a_small_budget_names_the_smallest_possible_one():
    with pytest.raises(FractalError, match="37,000 or more"):
        plan_rungs(15, classes=1000, samples=36_999, keep=3, largest=50)
    assert plan_rungs(15, classes=1000, samples=37_000, keep=3, largest=50)


def test_the_lowest_values_stay_and_of_equal_ones_the_first():
    assert lowest_indices([3.0, 1.0, 2.0, 1.0], 2) == (1, 3)
    assert lowest_indices([1.0, 1.0, 1.0], 2) == (0, 1)


def test_a_value_that_is_not_finite_never_stays():
    assert lowest_indices([math.nan, 5.0, math.inf, 4.0], 3) == (1, 3)
    with pytest.raises(FractalError, match="none of 2 settings has a FID"):
        lowest_indices([math.nan, math.nan], 1)


def test_the_default_budget_is_enough_for_the_default_settings_of_imagenet():
    config = SweepConfig()
    count = len(config.settings(SERVED))
    plan = plan_rungs(count, classes=1000, samples=config.samples, keep=config.keep, largest=50)
    assert plan[0] == Rung(24, 1)
