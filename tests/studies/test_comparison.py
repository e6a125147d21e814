"""Means, paired differences and verdicts, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from fractal_model.studies.comparison import compare_variants, estimate, images_to_reach
from fractal_model.studies.trial_table import TrialRow


def rows(variant: str, metric: str, values: dict[int, float | None]) -> list[TrialRow]:
    return [
        TrialRow(
            variant=variant,
            seed=seed,
            fingerprint=f"{variant}{seed}",
            images=100,
            minutes=2.0 + seed,
            machine="m",
            metrics={metric: value},
        )
        for seed, value in values.items()
    ]


def test_mean_and_standard_error():
    result = estimate([1.0, 2.0, 6.0])
    assert (result.mean, result.count) == (3.0, 3)
    assert result.error == pytest.approx(7**0.5 / 3**0.5)  # variance 7
    assert estimate([4.0]).error is None and not estimate([4.0]).is_significant


def test_differences_are_paired_by_seed():
    """The seeds differ by far more than the variants, which the pairing takes out."""
    base = rows("base", "fid", {0: 10.0, 1: 20.0, 2: 30.0})
    other = rows("other", "fid", {2: 28.9, 0: 9.0, 1: 18.9})
    (first, second) = compare_variants(base + other, ["base", "other"])
    assert first.metrics["fid"].difference is None and first.metrics["fid"].verdict == ""
    difference = second.metrics["fid"].difference
    assert difference.mean == pytest.approx(-3.2 / 3)
    assert difference.error == pytest.approx(0.1 / 3, rel=1e-6)  # −1, −1.1, −1.1
    assert second.metrics["fid"].value.mean == pytest.approx(18.9333, abs=1e-4)
    assert second.minutes.mean == 3.0


@pytest.mark.parametrize(
    ("metric", "change", "verdict"),
    [
        ("nll_bits_per_dim", -0.1, "better"),
        ("fid", 0.1, "worse"),
        ("seconds_per_image", -0.1, "better"),
        ("recall", -0.1, "worse"),
        ("recall", 0.1, "better"),
    ],
)
def test_lower_or_higher_is_better_by_the_metric(metric, change, verdict):
    base = rows("base", metric, {0: 1.0, 1: 2.0, 2: 3.0})
    other = rows("x", metric, {s: 1.0 + s + change * (1 + 0.1 * s) for s in range(3)})
    assert compare_variants(base + other, ["base", "x"])[1].metrics[metric].verdict == verdict


def test_a_difference_within_two_standard_errors_does_not_count():
    base = rows("base", "fid", {0: 1.0, 1: 1.0, 2: 1.0})
    other = rows("x", "fid", {0: 0.8, 1: 0.9, 2: 1.05})  # mean −0.083, standard error 0.073
    metric = compare_variants(base + other, ["base", "x"])[1].metrics["fid"]
    assert metric.difference.mean < 0 and metric.verdict == ""


def test_missing_seeds_and_values_are_left_out():
    base = rows("base", "recall", {0: 0.5, 1: 0.6})
    other = rows("x", "recall", {1: 0.7, 2: None, 3: 0.9})
    gone = rows("removed", "recall", {0: 0.1})
    compared = compare_variants(base + other + gone, ["base", "x", "not run yet"])
    assert [(v.variant, v.seeds) for v in compared] == [("base", 2), ("x", 3)]
    metric = compared[1].metrics["recall"]
    assert metric.value.count == 2 and metric.difference.count == 1
    assert metric.difference.mean == pytest.approx(0.1) and metric.verdict == ""
    assert compare_variants(rows("x", "fid", {0: None}), ["x"])[0].metrics == {}


BASE_CURVE = ((100, 2.0), (200, 1.0), (300, 0.8))


@pytest.mark.parametrize(
    ("curve", "share"),
    [
        (BASE_CURVE, 1.0),
        (((100, 1.0), (200, 0.6)), 0.5),  # halfway between 100 and 200 images
        (((100, 0.7), (200, 0.9)), 1 / 3),
        (((100, 1.0), (300, 0.9)), None),
        ((), None),
    ],
)
def test_images_until_a_curve_reaches_the_last_value_of_the_base(curve, share):
    assert images_to_reach(curve, BASE_CURVE) == (None if share is None else pytest.approx(share))
    assert images_to_reach(curve, ()) is None


def test_only_seeds_that_reach_the_base_count():
    base = [
        row.model_copy(update={"curve": BASE_CURVE})
        for row in rows("base", "fid", {0: 1.0, 1: 1.0, 2: 1.0})
    ]
    other = [
        row.model_copy(update={"curve": ((150, bits),)})
        for row, bits in zip(
            rows("x", "fid", {0: 1.0, 1: 1.0, 2: 1.0}), (0.8, 0.7, 0.9), strict=True
        )
    ]
    first, second = compare_variants(base + other, ["base", "x"])
    assert first.images_to_base.mean == 1.0 and first.images_to_base.count == 3
    assert second.images_to_base.mean == 0.5 and second.images_to_base.count == 2
    assert compare_variants(other, ["x"])[0].images_to_base is None
