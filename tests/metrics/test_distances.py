"""Distances equal independent computations on features of few dimensions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from fractal_model.common.errors import FractalError
from fractal_model.metrics.distances import (
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)
from fractal_model.metrics.statistics import FeatureStatistics
from tests.support.features import normal


def features_with(value):
    features = normal(20, seed=0)
    features[3, 2] = value
    return features


def test_statistics_are_the_mean_and_covariance():
    features = normal(50, seed=1, shift=2.0)
    statistics = FeatureStatistics.from_features(features)
    centred = features.double() - features.double().mean(dim=0)
    np.testing.assert_allclose(statistics.mean, features.double().mean(dim=0), rtol=1e-12)
    np.testing.assert_allclose(statistics.covariance, centred.T @ centred / 49, rtol=1e-10)
    assert statistics.count == 50
    assert statistics.mean.dtype == statistics.covariance.dtype == np.float64


def test_the_frechet_distance_equals_scipys():
    mixing = normal(8, seed=2)
    a = FeatureStatistics.from_features(normal(300, seed=3) @ mixing)
    b = FeatureStatistics.from_features(normal(200, seed=4, shift=0.3, scale=1.5))
    root = sqrtm(a.covariance @ b.covariance).real
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-6)


def test_the_frechet_distance_of_a_set_to_itself_is_zero():
    few = FeatureStatistics.from_features(normal(40, 64, seed=5))  # a singular covariance
    assert frechet_distance(few, few) == pytest.approx(0.0, abs=1e-3)


def test_the_frechet_distance_takes_float32_statistics():
    a = FeatureStatistics.from_features(normal(50, seed=6))
    b = FeatureStatistics.from_features(normal(50, seed=7, shift=1.0))
    single = FeatureStatistics(b.mean.astype(np.float32), b.covariance.astype(np.float32), 50)
    assert frechet_distance(a, single) == pytest.approx(frechet_distance(a, b), rel=1e-5)


def squared_mmd(x, y):
    """The unbiased estimator, written as sums over pairs (Binkowski et al. 2018, equation 4)."""
    x, y = x.double().numpy(), y.double().numpy()

    def kernel(p, q):
        return (p @ q / len(p) + 1) ** 3

    def within(z):
        pairs = [kernel(p, q) for i, p in enumerate(z) for j, q in enumerate(z) if i != j]
        return np.mean(pairs)

    return within(x) + within(y) - 2 * np.mean([kernel(p, q) for p in x for q in y])


def test_the_kernel_distance_of_whole_sets_is_the_squared_mmd():
    x, y = normal(30, seed=8), normal(30, seed=9, shift=0.5)
    kid = kernel_distance(x, y)
    assert kid.mean == pytest.approx(squared_mmd(x, y), rel=1e-9)
    assert (kid.subset_size, kid.subsets, kid.standard_error) == (30, 1, None)


def test_a_subset_of_the_kernel_distance_is_at_most_the_smaller_set():
    x, y = normal(30, seed=10), normal(60, seed=11, shift=0.5)
    kid = kernel_distance(x, y, subsets=7, subset_size=40)
    assert (kid.subset_size, kid.subsets, kid.standard_error) == (30, 7, None)


def test_the_kernel_distance_prints_nothing(capfd):
    kernel_distance(normal(20, seed=0), normal(20, seed=1), subsets=2, subset_size=10)
    assert capfd.readouterr() == ("", "")


def test_the_kernel_distance_is_repeatable_and_depends_on_the_seed():
    x, y = normal(60, seed=12), normal(60, seed=13, shift=0.5)
    first, again = (kernel_distance(x, y, subset_size=20, seed=1) for _ in range(2))
    assert first == again
    assert first.mean != kernel_distance(x, y, subset_size=20, seed=2).mean


def test_the_standard_error_is_the_deviation_among_independent_sets():
    distances = [
        kernel_distance(
            normal(200, seed=1000 + i),
            normal(200, seed=2000 + i, shift=0.7),
            subsets=50,
            subset_size=50,
        )
        for i in range(60)
    ]
    deviation = np.std([kid.mean for kid in distances], ddof=1)
    assert np.mean([kid.standard_error for kid in distances]) == pytest.approx(deviation, rel=0.3)


def share_inside_balls(points, centres, k):
    """Share of points inside any ball around a centre that reaches the k-th nearest other one."""
    points, centres = points.double().numpy(), centres.double().numpy()
    hits = 0
    for point in points:
        for i, centre in enumerate(centres):
            others = [c for j, c in enumerate(centres) if j != i]
            radius = sorted(np.linalg.norm(other - centre) for other in others)[k - 1]
            if np.linalg.norm(point - centre) <= radius:
                hits += 1
                break
    return hits / len(points)


@pytest.mark.parametrize("neighbours", [1, 3])
def test_precision_and_recall_equal_a_brute_force_computation(neighbours):
    generated, real = normal(40, seed=14, scale=0.8, shift=0.4), normal(50, seed=15)
    precision, recall = precision_recall(generated, real, neighbours=neighbours)
    pairs = (generated, real), (real, generated)
    expected = tuple(share_inside_balls(*pair, neighbours) for pair in pairs)
    assert 0 < expected[1] < expected[0] < 1  # so that swapped results fail the test
    assert (precision, recall) == pytest.approx(expected, abs=1e-6)


def test_a_collapsed_set_has_high_precision_and_low_recall():
    real = normal(200, seed=16)
    collapsed = real[:1] + normal(200, seed=17, scale=0.01)
    precision, recall = precision_recall(collapsed, real)
    assert precision > 0.99 and recall < 0.05


def test_a_set_has_full_precision_and_recall_to_itself():
    real = normal(100, seed=18)
    assert precision_recall(real, real) == (1.0, 1.0)


def test_the_inception_score_is_the_number_of_confident_classes():
    confident = torch.eye(10).repeat(10, 1) * 50
    assert inception_score(confident, splits=1) == pytest.approx(10.0, rel=1e-6)
    assert inception_score(torch.zeros(100, 10)) == pytest.approx(1.0, rel=1e-9)


GOOD = normal(20, seed=19)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "call",
    [
        FeatureStatistics.from_features,
        inception_score,
        lambda bad: kernel_distance(bad, GOOD),
        lambda bad: kernel_distance(GOOD, bad),
        lambda bad: precision_recall(bad, GOOD),
        lambda bad: precision_recall(GOOD, bad),
    ],
)
def test_features_that_are_not_finite_are_refused(call, value):
    with pytest.raises(FractalError, match="found NaN or infinity in 1 of 20 images"):
        call(features_with(value))


def test_statistics_that_are_not_finite_are_refused():
    good = FeatureStatistics.from_features(GOOD)
    bad = FeatureStatistics(good.mean * np.nan, good.covariance, 20)
    with pytest.raises(FractalError, match="feature statistics: found NaN"):
        frechet_distance(good, bad)


@pytest.mark.parametrize(
    ("call", "count", "least"),
    [
        (lambda: FeatureStatistics.from_features(GOOD[:1]), 1, 2),
        (lambda: kernel_distance(GOOD[:1], GOOD), 1, 2),
        (lambda: kernel_distance(GOOD, GOOD[:1]), 1, 2),
        (lambda: precision_recall(GOOD[:3], GOOD), 3, 4),
        (lambda: precision_recall(GOOD, GOOD[:5], neighbours=5), 5, 6),
        (lambda: inception_score(GOOD[:9]), 9, 10),
    ],
)
def test_too_few_images_are_refused(call, count, least):
    with pytest.raises(FractalError, match=f"the number of images is {count}, expected {least}"):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda a, b: kernel_distance(a, b),
        lambda a, b: precision_recall(a, b),
        lambda a, b: frechet_distance(*map(FeatureStatistics.from_features, (a, b))),
    ],
)
def test_features_of_unequal_widths_are_refused(call):
    with pytest.raises(FractalError, match="found widths 8 and 6"):
        call(GOOD, normal(20, 6, seed=20))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: kernel_distance(GOOD, GOOD, subsets=0), "subsets is 0"),
        (lambda: kernel_distance(GOOD, GOOD, subset_size=1), "subset_size 1,"),
        (lambda: precision_recall(GOOD, GOOD, neighbours=0), "neighbours: found 0"),
        (lambda: inception_score(GOOD, splits=0), "splits: found 0"),
        (lambda: FeatureStatistics.from_features(GOOD[0]), r"found shape \(8,\)"),
    ],
)
def test_wrong_options_are_refused(call, text):
    with pytest.raises(FractalError, match=text):
        call()
