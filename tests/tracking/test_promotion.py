"""The rule that makes a candidate the champion."""

import pytest

from fractal_model.tracking.promotion import decide

CHAMPION = {"fid": 20.0, "nll_bits_per_dim": 0.75}


@pytest.mark.parametrize(
    ("fid", "nll", "promoted"),
    [(19.0, 0.75, True), (19.0, 0.754, True), (19.0, 0.76, False), (20.0, 0.70, False)],
)
def test_better_fid_and_no_worse_likelihood(fid, nll, promoted):
    candidate = {"fid": fid, "nll_bits_per_dim": nll, "nll_bits_per_dim_stderr": 0.005}
    decision = decide(candidate, CHAMPION)
    assert decision.promote is promoted
    assert f"{fid:.3f}" in decision.reason


def test_first_candidate_is_promoted():
    assert decide({"fid": 99.0}, None).promote


def test_metrics_that_are_missing_are_named():
    decision = decide({"nll_bits_per_dim": 0.7}, {})
    assert not decision.promote
    assert "fid" in decision.reason
