"""The recipe of digits and the published one are proposed again, each for its own case."""

from __future__ import annotations

import pytest

from fractal_model.config.params import load_params
from fractal_model.sizing.choices import ImageSet, values
from fractal_model.sizing.recipe import Plan, propose_batch_size, propose_recipe
from tests.support.params import SHIPPED
from tests.support.sizing import DIGITS, IMAGENET, LAPTOP, NODE

PARAMS = load_params(SHIPPED)


def plan_for(size: str, images: ImageSet, epochs: int | None = None) -> Plan:
    named = PARAMS.size(size)
    machine = NODE if images is IMAGENET else LAPTOP
    return Plan(images, machine, named.model, epochs or named.training.epochs, 1000.0, 64)


@pytest.mark.parametrize(("size", "images"), [("digits", DIGITS), ("mar-64", IMAGENET)])
def test_a_shipped_recipe_is_proposed_again(size, images):
    shipped = PARAMS.training[size]
    proposed = values(propose_recipe(plan_for(size, images), flip=shipped.flip))
    assert proposed["base_learning_rate"] == pytest.approx(shipped.base_learning_rate, rel=0.02)
    for key in ("batch_size", "warmup_epochs", "weight_decay", "clip_norm", "label_drop", "flip"):
        assert proposed[key] == getattr(shipped, key), key
    assert tuple(proposed["betas"]) == shipped.betas


def test_ar_levels_on_few_images_are_regularised():
    shipped = PARAMS.training["digits-nll"]
    proposed = values(propose_recipe(plan_for("digits-nll", DIGITS), flip=False))
    assert tuple(proposed["ema_decays"]) == shipped.ema_decays
    assert proposed["context_noise"] == shipped.context_noise
    for size, images in (("digits", DIGITS), ("ar-64", IMAGENET)):
        proposed = values(propose_recipe(plan_for(size, images), flip=False))
        assert proposed["ema_decays"] == [] and "context_noise" not in proposed


def test_a_size_to_follow_brings_its_own_regularisation():
    like = PARAMS.training["emoji-64"]
    recipe = values(propose_recipe(plan_for("emoji-64", DIGITS), flip=False, like=like))
    assert recipe["ema_decays"] == list(like.ema_decays) and "context_noise" not in recipe


@pytest.mark.parametrize(("epochs", "decay"), [(1, 0.9), (22, 0.99), (220, 0.998)])
def test_an_average_spans_a_tenth_of_the_steps(epochs, decay):
    recipe = values(propose_recipe(plan_for("digits-nll", DIGITS, epochs), flip=False))
    assert recipe["ema_decays"] == [decay]


def test_the_peak_falls_with_the_width():
    def peak(size: str) -> float:
        recipe = values(propose_recipe(plan_for(size, DIGITS, epochs=22), flip=False))
        return recipe["base_learning_rate"] * recipe["batch_size"] / 256

    assert peak("digits") > peak("mar-b") > peak("mar-l")


def test_settings_of_a_size_to_follow_are_kept():
    like = PARAMS.training["mar-64"].model_copy(update={"clip_norm": 1.5, "ema_decays": (0.99,)})
    recipe = values(propose_recipe(plan_for("mar-64", DIGITS), flip=False, like=like))
    assert (recipe["clip_norm"], recipe["ema_decays"], recipe["flip"]) == (1.5, [0.99], True)
    assert not {"optimizer", "mask_ratio", "context_noise"} & set(recipe)
    options = {"optimizer": "muon", "mask_ratio": 0.7, "context_noise": 0.1}
    like = like.model_copy(update=options)
    recipe = values(propose_recipe(plan_for("mar-64", DIGITS), flip=False, like=like))
    assert {key: recipe[key] for key in options} == options


@pytest.mark.parametrize("train", [1, 3, 5, 40, 130])
def test_a_batch_is_at_most_a_quarter_of_the_images(train):
    batch = propose_batch_size(train, seen=train * 100)
    assert 1 <= batch <= max(1, train / 4)


@pytest.mark.parametrize("epochs", [1, 2, 5, 10, 1000])
def test_the_warm_up_is_shorter_than_the_training(epochs):
    recipe = values(propose_recipe(plan_for("digits", DIGITS, epochs), flip=False))
    assert recipe["warmup_epochs"] < epochs
