"""The learning-rate schedule: linear warm-up, then a half cosine to zero."""

import pytest

from fractal_model.training.schedule import learning_rate


def test_learning_rate_warms_up_and_falls_to_zero():
    def rate(step):
        return learning_rate(step, peak=2.0, warmup_steps=10, total_steps=110)

    assert rate(0) == 0
    assert rate(5) == pytest.approx(1.0)
    assert rate(10) == pytest.approx(2.0)
    assert rate(60) == pytest.approx(1.0)
    assert rate(110) == pytest.approx(0.0, abs=1e-12)
    assert rate(200) == pytest.approx(0.0, abs=1e-12)
