"""Models are loaded from folders and the registry, or refused with the reason."""

import pytest

from fractal_model.common.errors import FractalError
from fractal_model.tracking.model_source import load_model, select_weights, split_weights
from tests.support import tiny_model

_CHAMPION = "models:/fractal-digits@champion"


def test_an_unknown_registered_model_is_named(tmp_path):
    with pytest.raises(FractalError, match=r"models:/fractal-none@candidate"):
        load_model("models:/fractal-none@candidate", tmp_path)


@pytest.mark.parametrize("source", ["models:/fractal-none/1", "models:/", "models:/x@"])
def test_an_invalid_registry_address_is_refused(tmp_path, source):
    with pytest.raises(FractalError, match="train or import"):
        load_model(source, tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FractalError, match="no checkpoint folder"):
        load_model(str(tmp_path / "none"), tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(FractalError, match="holds neither a checkpoint nor an exported model"):
        load_model(str(tmp_path), tmp_path)


def test_an_exported_model_has_no_moving_average(tmp_path):
    tiny_model("ar").save_pretrained(tmp_path / "model")
    with pytest.raises(FractalError, match="exported model, which has the weights model alone"):
        load_model(f"{tmp_path / 'model'}#ema-0.9", tmp_path)


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("run/best", ("run/best", None)),
        ("run/best#ema", ("run/best", "ema")),
        ("models:/fractal-digits@champion#ema-0.9990", (_CHAMPION, "ema-0.999")),
        ("run#ema/best", ("run#ema/best", None)),
        ("run#2", ("run#2", None)),
        ("run#ema#ema-1e-3", ("run#ema", "ema-0.001")),
        (None, (None, None)),
    ],
)
def test_a_source_is_split_into_place_and_weights(source, parts):
    assert split_weights(source) == parts
    if None not in parts:
        assert split_weights(select_weights(*parts)) == parts


@pytest.mark.parametrize("name", ["ema-1", "ema-0", "ema-", "ema-x", "ema-nan", "ema--0.9"])
def test_a_decay_that_cannot_be_is_refused(name):
    with pytest.raises(FractalError, match=f"'{name}' names no weights: give model, ema"):
        split_weights(f"run#{name}")
