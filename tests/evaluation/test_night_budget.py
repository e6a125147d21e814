"""How long an evaluation takes by earlier ones, and whether it is begun."""

from __future__ import annotations

from fractal_model.evaluation.night_budget import EarlierEvaluation, fits_budget, forecast_seconds


def test_as_long_as_the_longest_of_as_many_images():
    earlier = [
        EarlierEvaluation(50_000, 3000.0),
        EarlierEvaluation(50_000, 3600.0),
        EarlierEvaluation(5000, 9000.0),
    ]
    assert forecast_seconds(earlier, 50_000) == 3600.0


def test_else_by_the_most_seconds_an_image():
    earlier = [EarlierEvaluation(5000, 500.0), EarlierEvaluation(1000, 200.0)]
    assert forecast_seconds(earlier, 50_000) == 10_000.0


def test_fewer_images_are_not_taken_to_be_quicker():
    assert forecast_seconds([EarlierEvaluation(50_000, 3600.0)], 5000) == 3600.0


def test_nothing_is_known_of_a_size_that_was_never_evaluated():
    assert forecast_seconds([], 50_000) is None


def test_what_is_begun():
    assert fits_budget(100.0, 100.0, 400.0)
    assert not fits_budget(100.0, 100.1, 400.0)
    assert not fits_budget(0.0, 0.0, 400.0)


def test_the_unknown_is_begun_in_the_first_half_of_the_budget():
    assert fits_budget(200.0, None, 400.0)
    assert not fits_budget(199.9, None, 400.0)
