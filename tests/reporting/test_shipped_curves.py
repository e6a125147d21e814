"""The reference curves in the package, and the form of their files."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from fractal_model.metrics.names import NLL
from fractal_model.reporting.shipped_curves import (
    Origin,
    format_curve,
    parse_curve,
    read_shipped_curve,
)

ORIGIN = Origin(
    size="tiny",
    fingerprint="f" * 64,
    dataset_checksum="a" * 64,
    seeds=(0, 1),
    settings={"training.epochs": "2"},
)
RUNS = (
    {"loss": [(0.5, 4.0), (1.0, 2.0), (2.0, 1.0)], NLL: [(2.0, 0.8)]},
    {"loss": [(0.5, 4.0), (1.0, 3.0), (2.0, 1.0), (3.0, 9.0)], NLL: [(2.0, 0.9)]},
)


def test_a_file_has_mean_and_spread_of_the_epochs_that_all_runs_have():
    text = format_curve(ORIGIN, RUNS)
    comment, *lines = text.splitlines()
    assert json.loads(comment.removeprefix("# "))["seeds"] == [0, 1]
    # Variances 0.125 and 0 of the two epochs are averaged, as the epochs are neighbours.
    assert lines == [
        "epoch,loss,loss_spread,nll_bits_per_dim,nll_bits_per_dim_spread",
        "1,3.25000,0.25000,,",
        "2,1.00000,0.25000,0.85000,0.07071",
    ]


def test_what_is_written_is_read():
    origin, curve = parse_curve(format_curve(ORIGIN, RUNS))
    assert origin == ORIGIN
    assert [point.value for point in curve.curves["loss"]] == [3.25, 1.0]
    (held_out,) = curve.curves[NLL]
    assert (held_out.epoch, held_out.value, held_out.spread) == (2.0, 0.85, 0.07071)


def test_the_curve_of_one_training_has_no_spread():
    text = format_curve(ORIGIN, RUNS[:1])
    assert text.splitlines()[2] == "1,3.00000,,,"
    _, curve = parse_curve(text)
    comparison = curve.compare("loss", 2.0, 9.0)
    assert comparison is not None
    assert (comparison.excess, comparison.normal) == (8.0, None)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"seeds"', '"seedz"', 1),
        lambda text: text.replace("# ", "", 1).replace("{", "", 1),
        lambda text: text.replace("3.25000", "high"),
        lambda text: text.replace("loss_spread", "spread"),
    ],
)
def test_a_damaged_file_is_an_error(change):
    with pytest.raises((ValidationError, ValueError, KeyError)):
        parse_curve(change(format_curve(ORIGIN, RUNS)))


def test_a_size_without_a_curve_has_none():
    assert read_shipped_curve("no-such-size") is None
