"""The standard error of the Fréchet distance equals what single distances give."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fractal_model.common.errors import FractalError
from fractal_model.metrics.bootstrap import build_resampled_distance, frechet_standard_error
from fractal_model.metrics.distances import frechet_distance
from fractal_model.metrics.statistics import FeatureStatistics
from tests.support.features import normal

REAL = FeatureStatistics.from_features(normal(200, 8, seed=0, shift=0.4, scale=1.3))


@pytest.mark.parametrize("count", [6, 60], ids=["fewer images than features", "more"])
def test_a_resampled_distance_equals_that_of_the_repeated_images(count):
    generated = normal(count, seed=1)
    distance = build_resampled_distance(generated, REAL)
    for seed in range(3):
        numbers = np.random.default_rng(seed).integers(0, count, count)
        expected = frechet_distance(FeatureStatistics.from_features(generated[numbers]), REAL)
        assert distance(numbers) == pytest.approx(expected, rel=1e-6)
    whole = frechet_distance(FeatureStatistics.from_features(generated), REAL)
    assert distance(np.arange(count)) == pytest.approx(whole, rel=1e-6)


def test_the_error_is_the_deviation_among_independent_sets():
    sets = [normal(400, seed=100 + i) for i in range(150)]
    distances = [frechet_distance(FeatureStatistics.from_features(one), REAL) for one in sets]
    errors = [frechet_standard_error(one, REAL, resamples=60, seed=0) for one in sets[:15]]
    assert np.mean(errors) == pytest.approx(np.std(distances, ddof=1), rel=0.2)


def test_the_error_depends_only_on_its_seed():
    generated = normal(30, seed=2)
    first, again = (frechet_standard_error(generated, REAL, resamples=10, seed=1) for _ in range(2))
    assert first == again != frechet_standard_error(generated, REAL, resamples=10, seed=2)


def test_features_that_are_not_finite_are_refused():
    bad = torch.full((5, 8), float("nan"))
    with pytest.raises(FractalError, match="generated features: found NaN"):
        frechet_standard_error(bad, REAL, resamples=3, seed=0)
