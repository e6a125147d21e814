"""Each metric has either a value or a reason for its absence."""

from __future__ import annotations

import math

import pytest
import torch

from fractal_model.common.errors import FractalError
from fractal_model.metrics.distances import kernel_distance, precision_recall
from fractal_model.metrics.image_metrics import image_metrics

NAMES = {"fid", "fid_stderr", "kid", "kid_stderr", "inception_score", "precision", "recall"}


def normal(count, width=8, *, seed, shift=0.0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + shift


def test_all_metrics_have_values_for_enough_images():
    generated, real = normal(60, seed=1, shift=0.4), normal(80, seed=2)
    results = image_metrics(
        generated, real, kid_subset_size=20, seed=3, logits=normal(60, 1008, seed=4)
    )
    assert results.values.keys() == NAMES and not results.absent
    assert all(type(value) is float and math.isfinite(value) for value in results.values.values())
    kid = kernel_distance(generated, real, subset_size=20, seed=3)
    assert (results.values["kid"], results.values["kid_stderr"]) == (kid.mean, kid.standard_error)
    manifold = precision_recall(generated, real)
    assert (results.values["precision"], results.values["recall"]) == manifold


def test_absent_metrics_have_their_reason():
    results = image_metrics(
        normal(3, seed=5), normal(80, seed=6), reason_no_logits="the weights lack it"
    )
    assert results.values.keys() == {"fid", "fid_stderr", "kid"}
    assert results.absent.keys() == NAMES - {"fid", "fid_stderr", "kid"}
    assert results.absent["inception_score"] == "the weights lack it"
    assert "100 subsets of 3 out of 3 generated" in results.absent["kid_stderr"]
    assert "the number of images is 3, expected 4" in results.absent["precision"]
    assert results.absent["recall"] == results.absent["precision"]


def test_one_image_has_no_metric():
    results = image_metrics(normal(1, seed=7), normal(80, seed=8))
    assert not results.values and results.absent.keys() == NAMES


@pytest.mark.parametrize("broken", ["generated features", "real features", "logits"])
def test_a_nan_in_any_input_is_an_error(broken):
    tensors = {
        "generated features": normal(20, seed=9),
        "real features": normal(20, seed=10),
        "logits": normal(20, 1008, seed=11),
    }
    tensors[broken][4, 4] = float("nan")
    with pytest.raises(FractalError, match=f"{broken}: found NaN"):
        image_metrics(
            tensors["generated features"], tensors["real features"], logits=tensors["logits"]
        )


def test_features_of_unequal_widths_are_refused():
    with pytest.raises(FractalError, match="found widths 8 and 6"):
        image_metrics(normal(20, seed=12), normal(20, 6, seed=13))
