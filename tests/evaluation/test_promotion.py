"""The rule that makes a candidate the champion."""

import math

import pytest
from pydantic import ValidationError

from fractal_model.config.evaluation import PromotionConfig
from fractal_model.evaluation.promotion import Decision, decide

RULES = PromotionConfig()
CHAMPION = {"fid": 20.0, "fid_stderr": 0.3, "nll_bits_per_dim": 0.75}


def _candidate(fid: float, nll: float, **more: float) -> dict[str, float]:
    errors = {"fid_stderr": 0.4, "nll_bits_per_dim_stderr": 0.005}
    return {"fid": fid, "nll_bits_per_dim": nll, **errors, **more}


@pytest.mark.parametrize(
    ("fid", "nll", "promoted"),
    [
        (19.4, 0.75, True),
        (19.6, 0.75, False),  # lower, but by less than both errors together: 0.5
        (19.4, 0.754, True),
        (19.4, 0.756, False),
        (19.4, 0.60, True),
        (20.0, 0.70, False),
        (21.0, 0.70, False),
    ],
)
def test_a_candidate_needs_a_lower_fid_beyond_chance_and_no_worse_likelihood(fid, nll, promoted):
    decision = decide(_candidate(fid, nll), CHAMPION, RULES)
    assert decision.promote is promoted
    assert f"{fid:.3f} against 20.000" in decision.reason
    assert "\n" not in decision.reason
    assert decision.numbers["fid_must_gain"] == pytest.approx(0.5)
    assert decision.numbers["nll_may_lose"] == pytest.approx(0.005)
    assert decision.numbers["champion_nll_bits_per_dim"] == 0.75


@pytest.mark.parametrize(
    ("rules", "fid", "nll", "promoted"),
    [
        ({"fid_standard_errors": 0.0}, 19.99, 0.75, True),
        ({"fid_standard_errors": 0.0}, 20.0, 0.75, False),
        ({"fid_standard_errors": 3.0}, 18.6, 0.75, False),
        ({"fid_standard_errors": 3.0}, 18.4, 0.75, True),
        ({"nll_standard_errors": 0.0}, 19.0, 0.7501, False),
        ({"nll_standard_errors": 2.0}, 19.0, 0.759, True),
    ],
)
def test_the_rules_set_the_number_of_standard_errors(rules, fid, nll, promoted):
    decision = decide(_candidate(fid, nll), CHAMPION, PromotionConfig(**rules))
    assert decision.promote is promoted


def test_a_missing_standard_error_counts_as_zero():
    champion = {"fid": 20.0, "nll_bits_per_dim": 0.75}
    assert decide(_candidate(19.59, 0.75), champion, RULES).promote
    assert not decide(_candidate(19.61, 0.75), champion, RULES).promote


def test_the_first_candidate_is_promoted():
    first = decide(_candidate(99.0, 7.0), None, RULES)
    assert first == Decision(
        True, "there is no champion yet", {"fid": 99.0, "nll_bits_per_dim": 7.0}
    )


@pytest.mark.parametrize("champion", [None, CHAMPION])
@pytest.mark.parametrize(
    "metrics", [{"fid_300": 1.0}, {"fid": math.nan}, {"fid": math.inf}, {"fid": -math.inf}]
)
def test_a_preview_or_a_number_that_is_not_finite_prevents_promotion(champion, metrics):
    decision = decide({"nll_bits_per_dim": 0.1, **metrics}, champion, RULES)
    assert not decision.promote
    assert "without fid" in decision.reason


def test_metrics_that_the_champion_lacks_are_named():
    decision = decide(_candidate(1.0, 0.1), {"nll_bits_per_dim": 0.7}, RULES)
    assert not decision.promote
    assert "the champion has no fid" in decision.reason


@pytest.mark.parametrize("wrong", [-1.0, math.nan, math.inf])
def test_a_negative_or_infinite_factor_is_refused(wrong):
    with pytest.raises(ValidationError):
        PromotionConfig(fid_standard_errors=wrong)
