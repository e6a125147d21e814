"""The forecast of an evaluation's duration, and which evaluations fit the night's budget."""

from __future__ import annotations

from fractal_model.evaluation.night_budget import EarlierEvaluation, fits_budget, forecast_seconds


def test_the_forecast_is_the_longest_evaluation_with_as_many_images():
    earlier = [
        EarlierEvaluation(50_000, 3000.0),
        EarlierEvaluation(50_000, 3600.0),
        EarlierEvaluation(5000, 9000.0),
    ]
    assert forecast_seconds(earlier, 50_000) == 3600.0


def test_the_forecast_for_another_count_uses_the_most_seconds_per_image():
    earlier = [EarlierEvaluation(5000, 500.0), EarlierEvaluation(1000, 200.0)]
    assert forecast_seconds(earlier, 50_000) == 10_000.0


def test_fewer_images_do_not_shorten_the_forecast():
    assert forecast_seconds([EarlierEvaluation(50_000, 3600.0)], 5000) == 3600.0


def test_a_size_that_was_never_evaluated_has_no_forecast():
    assert forecast_seconds([], 50_000) is None


def test_an_evaluation_fits_if_its_forecast_is_within_the_time_left():
    assert fits_budget(100.0, 100.0, 400.0)
    assert not fits_budget(100.0, 100.1, 400.0)
    assert not fits_budget(0.0, 0.0, 400.0)


def test_an_evaluation_without_a_forecast_fits_in_the_first_half_of_the_budget():
    assert fits_budget(200.0, None, 400.0)
    assert not fits_budget(199.9, None, 400.0)
