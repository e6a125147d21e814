"""A run is compared with curves of earlier trainings."""

from __future__ import annotations

import pytest

from fractal_model.metrics.names import NLL
from fractal_model.reporting.figures import svg, training_curves
from fractal_model.reporting.reference_curve import (
    MOST_POINTS,
    CurvePoint,
    ReferenceCurve,
    describe_run,
    epoch_means,
)

LOSSES = [(0.5, 4.0), (1.0, 2.0), (1.5, 2.0), (2.02, 1.0)]


def reference(spread: float | None = 0.01, *differences: str) -> ReferenceCurve:
    def points(*values: float) -> tuple[CurvePoint, ...]:
        return tuple(
            CurvePoint(epoch=epoch, value=value, spread=spread)
            for epoch, value in enumerate(values, 1)
        )

    curves = {"loss": points(3.0, 1.5, 1.4), NLL: points(0.9, 0.8, 0.7)}
    return ReferenceCurve(name="the reference", curves=curves, differences=differences)


def test_an_epoch_takes_the_report_that_ends_it():
    assert epoch_means(LOSSES) == [(1.0, 3.0), (2.0, 1.5)]
    assert epoch_means([(0.01, 5.0), (4.0, 1.0)]) == [(1.0, 5.0), (4.0, 1.0)]
    assert epoch_means([]) == []


@pytest.mark.parametrize(
    ("value", "text", "is_too_high"),
    [
        (1.54, "0.0400 above the reference, normal (±0.0500)", False),
        (1.46, "0.0400 below the reference, normal (±0.0500)", False),
        (1.56, "0.0600 above the reference, not normal (±0.0500)", True),
        (1.4, "0.1000 below the reference, not normal (±0.0500)", False),
    ],
)
def test_five_standard_deviations_between_seeds_are_normal(value, text, is_too_high):
    comparison = reference().compare("loss", 2.0, value)
    assert comparison is not None
    assert (str(comparison), comparison.is_too_high) == (text, is_too_high)


@pytest.mark.parametrize("other", [reference(None), reference(0.01, "epochs 3 instead of 22")])
def test_without_equal_trainings_nothing_is_called_normal(other):
    comparison = other.compare("loss", 2.0, 9.0)
    assert comparison is not None
    assert (str(comparison), comparison.is_too_high) == ("7.5000 above the reference", False)


def test_values_between_two_points_are_interpolated():
    comparison = reference().compare("loss", 1.5, 2.25)
    assert comparison is not None and comparison.excess == pytest.approx(0.0)


def test_between_two_points_a_curve_may_bend():
    comparison = reference().compare("loss", 1.5, 2.5)
    assert (comparison.excess, comparison.normal) == pytest.approx((0.25, 0.05 + 1.5 / 4))
    assert reference().compare("loss", 2.0, 2.5).normal == pytest.approx(0.05)


@pytest.mark.parametrize(("metric", "epoch"), [("loss", 0.5), ("loss", 5.0), ("other", 1.0)])
def test_where_the_reference_has_no_value_there_is_no_comparison(metric, epoch):
    assert reference().compare(metric, epoch, 1.0) is None


def test_the_last_epoch_of_a_run_is_described():
    lines = describe_run({"loss": LOSSES, NLL: [(1.0, 0.9), (2.0, 0.9)]}, reference())
    assert lines == [
        "loss 1.5000 at epoch 2: 0.0000 below the reference, normal (±0.0500)",
        "held-out bits/dim 0.9000 at epoch 2: 0.1000 above the reference, not normal (±0.0500); "
        "look at curves.png, gradient_norm and skipped_batches of the run",
    ]


def test_another_recipe_is_named():
    lines = describe_run({"loss": LOSSES}, reference(0.01, "epochs 3 instead of 22", "flip True"))
    assert lines[-1] == "the run has another recipe: epochs 3 instead of 22, flip True"
    assert describe_run({}, reference(0.01, "epochs 3 instead of 22")) == []


def test_the_curve_of_one_run_is_thinned_and_has_no_spread():
    points = [(float(epoch), 1 / epoch) for epoch in range(1, 4001)]
    curve = ReferenceCurve.of_run("the champion", {"loss": points, NLL: []}, ())
    assert list(curve.curves) == ["loss"]
    assert len(curve.curves["loss"]) == MOST_POINTS
    assert {point.spread for point in curve.curves["loss"]} == {None}
    assert curve.curves["loss"][0] == CurvePoint(epoch=1.0, value=1.0)


def test_a_figure_draws_the_run_over_the_reference_and_its_band():
    curves = {"loss": LOSSES, NLL: [(2.0, 0.8)]}
    alone, over = (training_curves(curves, each) for each in (None, reference()))
    assert [len(axes.lines) for axes in alone.axes] == [1, 1]
    assert [len(axes.lines) for axes in over.axes] == [2, 2]
    assert [len(axes.collections) for axes in over.axes] == [1, 1]
    assert "the reference" in svg(over) and "the reference" not in svg(alone)
    assert "the reference, another recipe" in svg(training_curves(curves, reference(0.1, "flip")))
