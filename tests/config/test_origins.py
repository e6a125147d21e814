"""Each setting in force has the place that its value comes from."""

from __future__ import annotations

import pytest

from fractal_model.common.errors import FractalError
from fractal_model.config.origins import list_settings
from fractal_model.config.params_source import ParamsSource
from tests.support.params import SHIPPED, shipped_text


def _line(start: str) -> int:
    lines = SHIPPED.read_text().splitlines()
    return next(n for n, line in enumerate(lines, 1) if line.strip().startswith(start))


@pytest.mark.parametrize(
    ("key", "overrides", "value", "origin"),
    [
        ("training.digits.epochs", [], 22, f"params.yaml:{_line('epochs: 22')}"),
        ("training.digits.epochs", ["training.digits.epochs=5"], 5, "--set"),
        ("training.mar-64.epochs", ["training.ar-64.epochs=50"], 800, "epochs: 800"),
        ("training.mar-h.epochs", [], 600, "mar-h: {<<"),
        ("training.mar-h.batch_size", [], 1024, "mar-b: &recipe-256"),
        ("training.digits.validation.passes", [], 2, "validation: {passes: 2"),
        ("training.digits.validation.images", [], 1000, "default"),
        (
            "training.digits.validation.passes",
            ["training.digits.validation={passes: 7}"],
            7,
            "--set",
        ),
        ("training.digits.register", [], "last", "register: last"),
        ("sweep.mar-b.keep", [], 3, "default"),
        ("nightly.timezone", [], "UTC", "timezone: UTC"),
    ],
)
def test_the_origin_of_a_setting(key, overrides, value, origin):
    (setting,) = list_settings(ParamsSource(SHIPPED, tuple(overrides)), key)
    assert setting.value == value
    is_line = origin not in ("--set", "default") and not origin.startswith("params.yaml:")
    assert setting.origin == (f"params.yaml:{_line(origin)}" if is_line else origin)


def test_an_earlier_key_is_no_default(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text(shipped_text().replace("ema_decays: [] # such", "ema_decay: 0.9 #"))
    (setting,) = list_settings(ParamsSource(file), "training.digits.ema_decays")
    assert setting.value == [0.9] and setting.origin == "params.yaml"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("trainin", "no setting is named 'trainin', did you mean 'training'?"),
        ("training.digit", "'training.digit', did you mean 'digits'?"),
        ("training.digits.epoch", "'training.digits.epoch', did you mean 'epochs'?"),
        ("training.digits.epochs.x", "'training.digits.epochs.x'"),
        ("training.", "no setting is named 'training.'"),
    ],
)
def test_an_unknown_setting_is_refused_with_the_nearest(key, message):
    with pytest.raises(FractalError) as raised:
        list_settings(ParamsSource(SHIPPED), key)
    assert message in str(raised.value)
