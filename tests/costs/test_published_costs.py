"""The paper's figures follow from the shipped sizes."""

from __future__ import annotations

import pytest

from fractal_model.common.gpus import find_gpu
from fractal_model.config.params import load_params
from fractal_model.costs import published_costs
from fractal_model.costs.flops import published_sampling_flops, training_flops
from fractal_model.costs.shapes import training_shares
from tests.support.params import SHIPPED

PARAMS = load_params(SHIPPED)
IMAGES_SEEN = 800 * 1_281_167


def test_levels_of_mar_l_are_the_published_ones():
    ours = published_costs.paper_flops(PARAMS.size("mar-l").model)
    assert tuple(round(f / 1e9) for f in ours) == published_costs.LEVEL_GFLOPS["mar-l"]


@pytest.mark.parametrize(
    ("size", "tolerance"),
    [("mar-64", 0), ("mar-64-two-level", 0), ("ar-64", 0.051), ("ar-64-two-level", 0.013)],
)
def test_totals_at_64_pixels_are_near_the_published_ones(size, tolerance):
    total = sum(published_costs.paper_flops(PARAMS.size(size).model)) / 1e9
    assert round(total) == pytest.approx(published_costs.TOTAL_GFLOPS[size], rel=tolerance, abs=0)


@pytest.mark.parametrize("size", ["mar-64", "ar-64"])
def test_full_sequence_is_near_the_published_one(size):
    ours = published_costs.full_sequence_flops(PARAMS.size(size).model) / 1e9
    assert ours == pytest.approx(published_costs.FULL_SEQUENCE_GFLOPS, rel=0.005)


def implied_utilisation(flops: float, *, seconds: float, peak: float) -> float:
    """Share of the peak (operations a second, of all GPUs) that a run of known length reached."""
    return flops / (seconds * peak)


def training_utilisation(size: str, *, checkpointing: bool) -> float:
    model = PARAMS.size(size).model
    shares = training_shares(model, "published")
    flops = sum(training_flops(model, shares, activation_checkpointing=checkpointing))
    return implied_utilisation(
        IMAGES_SEEN * flops,
        seconds=published_costs.TRAINING_DAYS[size] * 86_400,
        peak=published_costs.TRAINING_GPUS * find_gpu("h100").peak("bfloat16"),
    )


def test_utilisations_are_what_the_published_times_imply():
    assert training_utilisation("mar-l", checkpointing=True) == pytest.approx(
        published_costs.TRAINING_UTILISATION, rel=0.005
    )
    other = training_utilisation("mar-64", checkpointing=True)
    assert other == pytest.approx(published_costs.TRAINING_UTILISATION_64, rel=0.005)
    assert other > published_costs.TRAINING_UTILISATION


def test_sampling_utilisation_is_what_the_published_time_implies():
    size = PARAMS.size("mar-h")
    implied = implied_utilisation(
        sum(published_sampling_flops(size.model, size.sampling)),
        seconds=published_costs.SAMPLING_SECONDS["mar-h"],
        peak=find_gpu("h100-pcie").peak("bfloat16"),
    )
    assert implied == pytest.approx(published_costs.SAMPLING_UTILISATION, rel=0.005)
