"""Models are loaded from folders and the registry, or refused with the reason."""

import huggingface_hub.constants
import pytest

from fractal_model.common.errors import FractalError
from fractal_model.config.sampling import SamplingConfig
from fractal_model.config.serving import ServingConfig
from fractal_model.tracking.model_source import (
    attach_guide,
    load_model,
    select_weights,
    split_weights,
)
from tests.support import tiny_model
from tests.support.tiny_files import save_tiny

_CHAMPION = "models:/fractal-digits@champion"


def test_an_unknown_registered_model_is_named(tmp_path):
    with pytest.raises(FractalError, match=r"models:/fractal-none@candidate"):
        load_model("models:/fractal-none@candidate", tmp_path)


@pytest.mark.parametrize("source", ["models:/fractal-none/1", "models:/", "models:/x@"])
def test_an_invalid_registry_address_is_refused(tmp_path, source):
    with pytest.raises(FractalError, match="train or import"):
        load_model(source, tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FractalError, match="there is no model"):
        load_model(str(tmp_path / "none"), tmp_path)


def test_a_file_is_refused_with_the_way_to_import_it(tmp_path):
    (tmp_path / "mar-b.pth").touch()
    with pytest.raises(FractalError, match="mar-b.pth is a file, expected the folder of a model"):
        load_model(str(tmp_path / "mar-b.pth"), tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(FractalError, match="holds neither a checkpoint nor an exported model"):
        load_model(str(tmp_path), tmp_path)


def test_an_exported_model_has_no_moving_average(tmp_path):
    tiny_model("ar").save_pretrained(tmp_path / "model")
    with pytest.raises(FractalError, match="exported model, which has the weights model alone"):
        load_model(f"{tmp_path / 'model'}#ema-0.9", tmp_path)


def test_a_model_is_loaded_with_the_weights_that_it_is_served_with(tmp_path):
    serving = ServingConfig(weights="ema", sampling=SamplingConfig(guidance=2.0))
    folder = save_tiny(tmp_path / "c", averages=["ema-0.9"], serving=serving)
    for source, weights, sharpen in (
        (f"{folder}", "ema-0.9", 2.0),
        (f"{folder}#ema-0.9", "ema-0.9", 2.0),
        (f"{folder}#model", "model", 8.0),
    ):
        model = load_model(source)
        assert model.serving == ServingConfig(weights=weights, sampling=serving.sampling)
        expected = tiny_model("mar", sharpen=sharpen).state_dict()
        assert all(tensor.equal(expected[name]) for name, tensor in model.state_dict().items())


def test_a_guide_is_loaded_for_the_model_and_named_by_its_content(tmp_path):
    tiny_model("mar", widths=(8, 8, 4)).save_pretrained(tmp_path / "guide")
    model, settings = tiny_model("mar"), SamplingConfig(guidance=2, guide=str(tmp_path / "guide"))
    pinned = attach_guide(model, settings, None)
    assert model.guide.model.config.levels[0].width == 8
    assert pinned.guide == f"sha256:{model.guide.checksum}"
    (tmp_path / "guide").rename(tmp_path / "moved")
    moved = settings.model_copy(update={"guide": str(tmp_path / "moved")})
    assert attach_guide(tiny_model("mar"), moved, None) == pinned
    assert attach_guide(model, SamplingConfig(), None) == SamplingConfig()
    assert model.guide is None


def test_a_guide_that_is_missing_or_does_not_fit_is_an_error(tmp_path):
    tiny_model("ar").save_pretrained(tmp_path / "ar")
    for name, reason in (("ar", "the guide's list of generators is"), ("none", "there is no")):
        place = tmp_path / name
        with pytest.raises(FractalError, match=f"guide {place}: .*{reason}") as raised:
            attach_guide(tiny_model("mar"), SamplingConfig(guide=str(place)), None)
        assert "\n" not in str(raised.value)


def test_an_exported_average_is_known_by_its_name(tmp_path):
    model = tiny_model("ar")
    model.serving = ServingConfig(weights="ema-0.9", sampling=SamplingConfig())
    model.save_pretrained(tmp_path / "m")
    assert load_model(f"{tmp_path / 'm'}#ema-0.9").serving == model.serving
    with pytest.raises(FractalError, match="has the weights ema-0.9 alone: leave out #model"):
        load_model(f"{tmp_path / 'm'}#model")


@pytest.mark.parametrize("source", ["someone/model", "some-one/model-1.b"])
def test_a_name_of_the_hub_is_looked_up_there(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FractalError, match=f"no folder {source}, and no model .* from the hub"):
        load_model(source)
    (tmp_path / source).parent.mkdir()  # Then the name is a mistyped path.
    with pytest.raises(FractalError, match=f"there is no model {source}: give the folder"):
        load_model(source)


def test_the_registry_must_be_known(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(FractalError, match="has no params.yaml: run in the project's folder, or"):
        load_model("models:/fractal-digits@champion")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("run/best", ("run/best", None)),
        ("run/best#ema", ("run/best", "ema")),
        ("models:/fractal-digits@champion#ema-0.9990", (_CHAMPION, "ema-0.999")),
        ("run/best#model", ("run/best", "model")),
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


def test_another_word_after_a_registered_model_is_refused():
    with pytest.raises(FractalError, match="'emaa' names no weights: give model, ema"):
        split_weights("models:/fractal-digits@champion#emaa")


@pytest.mark.parametrize("name", ["ema-1", "ema-0", "ema-", "ema-x", "ema-nan", "ema--0.9"])
def test_a_decay_that_cannot_be_is_refused(name):
    with pytest.raises(FractalError, match=f"'{name}' names no weights: give model, ema"):
        split_weights(f"run#{name}")
