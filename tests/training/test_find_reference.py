"""Which curves a training is compared with."""

from __future__ import annotations

import pytest

from fractal_model.config.params import Size, load_params
from fractal_model.data.manifest import Manifest, ShardRecord, SplitRecord
from fractal_model.reporting.reference_curve import CurvePoint, ReferenceCurve
from fractal_model.reporting.shipped_curves import Origin, read_shipped_curve
from fractal_model.training import find_reference as module
from fractal_model.training.find_reference import curve_settings, find_reference
from tests.support.params import SHIPPED

SIZE = load_params(SHIPPED).size("digits")


def data(checksum: str) -> Manifest:
    shard = ShardRecord(file="train/00000.arrow", images=2, bytes=9)
    split = SplitRecord(images=2, images_per_class=(1, 1), checksum=checksum, shards=(shard,))
    return Manifest(
        dataset="digits",
        source="here",
        preprocessing="none",
        resolution=8,
        class_names=("a", "b"),
        splits={"train": split},
    )


DATA, OTHER_DATA = data("a" * 64), data("b" * 64)
CURVE = ReferenceCurve(name="the reference", curves={"loss": (CurvePoint(epoch=1.0, value=2.0),)})
CHAMPION_LOSSES = ((1.0, 3.0), (2.0, 1.0))


def changed(size: Size = SIZE, **recipe: object) -> Size:
    return size.model_copy(update={"training": size.training.model_copy(update=recipe)})


@pytest.fixture
def shipped(monkeypatch) -> None:
    origin = Origin(
        size="digits",
        fingerprint="f" * 64,
        dataset_checksum=DATA.checksum,
        seeds=(0, 1, 2),
        settings=curve_settings(SIZE),
    )
    monkeypatch.setattr(module, "read_shipped_curve", lambda size: (origin, CURVE))


@pytest.fixture
def champion(monkeypatch) -> str:
    """Id of the run of a champion that was trained for 5 epochs."""
    monkeypatch.setattr(
        module,
        "curve",
        lambda run, metric: CHAMPION_LOSSES if metric == "loss" and run else (),
    )
    monkeypatch.setattr(
        module.runs, "read_params", lambda run: {**curve_settings(changed(epochs=5)), "x": "y"}
    )
    return "a"


@pytest.mark.usefixtures("shipped")
@pytest.mark.parametrize(
    "same", [{"seed": 7}, {"workers": 1}, {"ema_decays": (0.9,)}, {"log_every_steps": 1}]
)
def test_the_shipped_curve_is_for_an_equal_recipe_with_any_seed(champion, same):
    assert find_reference(changed(**same), DATA, champion) == CURVE


@pytest.mark.usefixtures("shipped")
def test_a_run_with_another_recipe_is_compared_with_the_champion(champion):
    found = find_reference(changed(epochs=9, flip=True), DATA, champion)
    assert found is not None and found.name == "the champion"
    assert [point.value for point in found.curves["loss"]] == [3.0, 1.0]
    assert found.differences == ("epochs 9 instead of 5", "flip True instead of False")


@pytest.mark.usefixtures("shipped", "champion")
def test_without_a_champion_it_is_the_shipped_curve_with_the_differences():
    found = find_reference(changed(epochs=9), DATA, None)
    assert found == CURVE.model_copy(update={"differences": ("epochs 9 instead of 22",)})
    normed = SIZE.model.pixel.model_copy(update={"qk_norm": True})
    for change in ({"red_weight": 2.0}, {"pixel": normed}):
        model = SIZE.model.model_copy(update=change)
        found = find_reference(SIZE.model_copy(update={"model": model}), DATA, None)
        assert found is not None and found.differences == ("another architecture",)


@pytest.mark.usefixtures("shipped", "champion")
def test_a_training_from_the_weights_of_a_model_is_not_called_normal():
    found = find_reference(changed(start_from="models:/fractal-digits/1"), DATA, None)
    assert found is not None
    assert found.differences == ("start_from models:/fractal-digits/1 instead of random weights",)


OPTIONS = {"mask_ratio": "uniform", "context_noise": 0.1, "optimizer": "muon"}


@pytest.mark.usefixtures("shipped")
@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_is_a_difference_though_recipes_at_the_default_do_not_have_it(name, monkeypatch):
    default, value = str(getattr(SIZE.training, name)), str(OPTIONS[name])
    assert f"training.{name}" not in curve_settings(SIZE)
    found = find_reference(changed(**{name: OPTIONS[name]}), DATA, None)
    assert found is not None
    assert found.differences == (f"{name} {value} instead of {default}",)
    theirs = curve_settings(changed(**{name: OPTIONS[name]}))
    monkeypatch.setattr(module, "read_shipped_curve", lambda size: None)
    monkeypatch.setattr(module, "curve", lambda run, metric: CHAMPION_LOSSES)
    monkeypatch.setattr(module.runs, "read_params", lambda run: theirs)
    found = find_reference(SIZE, DATA, "a")
    assert found is not None
    assert found.differences == (f"{name} {default} instead of {value}",)


@pytest.mark.usefixtures("shipped")
def test_a_layer_setting_of_one_side_alone_is_another_architecture(monkeypatch):
    theirs = {**curve_settings(SIZE), "model.levels.0.new": "True"}
    monkeypatch.setattr(module, "read_shipped_curve", lambda size: None)
    monkeypatch.setattr(module, "curve", lambda run, metric: CHAMPION_LOSSES)
    monkeypatch.setattr(module.runs, "read_params", lambda run: theirs)
    found = find_reference(SIZE, DATA, "a")
    assert found is not None and found.differences == ("another architecture",)


@pytest.mark.usefixtures("shipped")
def test_the_shipped_curve_is_not_for_other_data(champion):
    found = find_reference(SIZE, OTHER_DATA, champion)
    assert found is not None and found.name == "the champion"
    assert find_reference(SIZE, OTHER_DATA, None) is None


def test_without_any_curve_there_is_no_reference(champion, monkeypatch):
    monkeypatch.setattr(module, "read_shipped_curve", lambda size: None)
    assert find_reference(SIZE, DATA, None) is None


@pytest.mark.parametrize(("size", "seeds"), [("digits", 3), ("emoji-64", 1)])
def test_the_shipped_curves_belong_to_the_recipes_in_params(size, seeds):
    """After a change of the recipe make it again: see CONTRIBUTING.md."""
    found, chosen = read_shipped_curve(size), load_params(SHIPPED).size(size)
    assert found is not None
    origin, curve = found
    assert origin.settings == curve_settings(chosen)
    assert len(origin.seeds) >= seeds
    recipe = chosen.training
    assert [p.epoch for p in curve.curves["loss"]] == list(range(1, recipe.epochs + 1))
    every = list(range(recipe.validate_every_epochs, recipe.epochs, recipe.validate_every_epochs))
    assert [p.epoch for p in curve.curves["nll_bits_per_dim"]] == [*every, recipe.epochs]
    spreads = [point.spread for points in curve.curves.values() for point in points]
    assert all(spread > 0 if seeds > 1 else spread is None for spread in spreads)
