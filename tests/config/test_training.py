"""A recipe states the resources that it needs."""

from __future__ import annotations

import pytest
import yaml
from pydantic import ValidationError

import fractal_model
from fractal_model.common.fingerprint import fingerprint
from fractal_model.config.evaluation import SweepConfig
from fractal_model.config.params import load_params
from fractal_model.config.training import TrainingConfig
from fractal_model.config.validation import ValidationConfig
from tests.support.params import IMAGENET_SIZES, SHIPPED
from tests.support.recipes import RECIPE

PARAMS = load_params(SHIPPED)

PARAMS = load_params(SHIPPED)


@pytest.mark.parametrize(
    ("workers", "per_worker", "cpus"),
    [
        (3, 0.5, 2),
        (2, 0.5, 1),
        (1, 0.25, 1),
        (3, 1.0, 3),
        (10, 0.1, 1),
        (3, 0.1, 1),
        (100, 1.1, 110),  # in floats the product is 110.00000000000001
        (3, 1.1, 4),
    ],
)
def test_the_cpus_of_all_workers_are_rounded_up(workers, per_worker, cpus):
    changes = {"workers": workers, "resources_per_worker": {"CPU": per_worker}}
    assert RECIPE.model_copy(update=changes).cpus == cpus


def test_without_a_number_of_cpus_each_worker_needs_one():
    changes = {"workers": 3, "resources_per_worker": {"GPU": 1.0}}
    assert RECIPE.model_copy(update=changes).cpus == 3


SETTINGS = RECIPE.model_dump(exclude={"ema_decays"})


@pytest.mark.parametrize(
    ("settings", "decays"),
    [
        ({}, ()),
        ({"ema_decay": 0.0}, ()),
        ({"ema_decay": 0}, ()),
        ({"ema_decay": 0.999}, (0.999,)),
        ({"ema_decays": [0.9999, 0.999]}, (0.999, 0.9999)),
    ],
)
def test_decays_are_read_from_both_keys_and_sorted(settings, decays):
    recipe = TrainingConfig.model_validate(SETTINGS | settings)
    assert recipe.ema_decays == decays
    assert recipe.averages == tuple(f"ema-{decay}" for decay in decays)
    assert TrainingConfig.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize("decay", [False, True, 1.0, -0.5, "much", None])
def test_a_wrong_decay_is_refused_under_the_earlier_key_too(decay):
    with pytest.raises(ValidationError, match="ema_decays"):
        TrainingConfig.model_validate(SETTINGS | {"ema_decay": decay})


def test_a_training_may_be_all_warm_up():
    """So a recipe can be cut to a few epochs by one setting."""
    assert TrainingConfig.model_validate(SETTINGS | {"epochs": 3, "warmup_epochs": 3}).epochs == 3
    with pytest.raises(ValidationError, match="warmup_epochs 4 are more than epochs 3: lower"):
        TrainingConfig.model_validate(SETTINGS | {"epochs": 3, "warmup_epochs": 4})


OLD_RECIPE = """
dataset: imagenet256
epochs: 800
warmup_epochs: 40
batch_size: 1024
base_learning_rate: 5.0e-5
weight_decay: 0.05
betas: [0.9, 0.95]
clip_norm: 3.0
label_drop: 0.1
flip: true
precision: bfloat16
activation_checkpointing: true
compile: true
workers: 32
min_workers: 8
resources_per_worker: {CPU: 8, GPU: 1, memory: 42949672960}
accelerator_type: H100
images_per_worker: 32
loader_processes: 6
checkpoint_every_epochs: 5
checkpoint_every_minutes: 30
keep_checkpoints: 3
log_every_steps: 50
max_failures: 10
stall_seconds: 600
non_finite: skip
max_non_finite: 3
seed: 0
"""
OLD_FINGERPRINTS = {
    0.0: "154e75b87a753b1484b28277a929d69e6d556cd96a296ce6ed20b188cb821546",
    0.999: "0ab2fed4e3559725d6e521ffd1839161c60e8929520b607ec4abb8c69b023da5",
}
"""Fingerprint of OLD_RECIPE for each `ema_decay`, computed before several decays were possible."""


@pytest.mark.parametrize("decay", OLD_FINGERPRINTS)
def test_a_recipe_with_at_most_one_decay_keeps_its_fingerprint(monkeypatch, decay):
    monkeypatch.setattr(fractal_model, "__version__", "0.1.0")
    old = yaml.safe_load(OLD_RECIPE)
    for settings in ({"ema_decay": decay}, {"ema_decays": [decay] if decay else []}):
        recipe = TrainingConfig.model_validate(old | settings)
        assert fingerprint(recipe.without_operational_settings()) == OLD_FINGERPRINTS[decay]
    several = TrainingConfig.model_validate(old | {"ema_decays": [0.5, 0.999]})
    other = fingerprint(several.without_operational_settings())
    assert other not in OLD_FINGERPRINTS.values()


def test_a_sweep_of_the_evaluations_weights_keeps_its_fingerprint(monkeypatch):
    monkeypatch.setattr(fractal_model, "__version__", "0.1.0")
    old = "d36df3560510a52c7b607388f328e9a5fedbd0daa02c5f7c986eede1feb2b151"
    assert fingerprint(SweepConfig()) == fingerprint(SweepConfig(weights=())) == old
    assert fingerprint(SweepConfig(weights=("model",))) != old


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer", "muon"),
        ("mask_ratio", "uniform"),
        ("mask_ratio", 0.7),
        ("context_noise", 0.1),
    ],
)
def test_an_option_off_its_default_is_another_run(key, value):
    recipe = TrainingConfig.model_validate(SETTINGS | {key: value})
    assert TrainingConfig.model_validate_json(recipe.model_dump_json()) == recipe
    assert recipe.curve_settings() == {**RECIPE.curve_settings(), key: value}
    prints = {fingerprint(r.without_operational_settings()) for r in (recipe, RECIPE)}
    assert len(prints) == 2
    default = TrainingConfig.model_validate(SETTINGS | {key: getattr(RECIPE, key)})
    assert key not in default.model_dump()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"optimizer": "sgd"}, "Input should be 'adamw' or 'muon'"),
        *(
            ({"mask_ratio": ratio}, "give published, uniform, or a number above 0 and below 1")
            for ratio in ("half", 0, 1, 1.5, -0.1, float("nan"), True, None, 10**400, [0.7])
        ),
        ({"context_noise": 1.0}, "context_noise\n.*should be less than 1"),
        ({"context_noise": -0.1}, "context_noise\n.*should be greater than or equal to 0"),
        ({"context_noise": True}, "should be a number, not true or false"),
        ({"label_drop": 1.1}, "label_drop\n.*should be less than or equal to 1"),
        ({"context_noise": 0.1, "images_per_worker": 1}, "a worker computes 1 image at a time"),
        ({"context_noise": 0.1, "batch_size": 2, "workers": 2}, "batch_size 2 over 2 workers"),
    ],
)
def test_an_option_out_of_range_is_refused(setting, message):
    with pytest.raises(ValidationError, match=message) as raised:
        TrainingConfig.model_validate(SETTINGS | setting)
    assert raised.value.error_count() == 1


def test_all_labels_may_be_dropped():
    assert TrainingConfig.model_validate(SETTINGS | {"label_drop": 1}).label_drop == 1.0


@pytest.mark.parametrize("size", IMAGENET_SIZES)
def test_validation_is_on_for_published_sizes_and_changes_no_fingerprint(size):
    recipe = PARAMS.size(size).training
    assert (recipe.validate_every_epochs, recipe.register_checkpoint) == (10, "last")
    without = recipe.model_copy(update={"validate_every_epochs": 0})
    fingerprints = {fingerprint(r.without_operational_settings()) for r in (recipe, without)}
    assert len(fingerprints) == 1
    assert "validat" not in recipe.without_operational_settings().model_dump_json()


def test_the_bounds_of_validation_are_in_no_fingerprint():
    """Runs that register their best checkpoint had neither setting in their fingerprint."""
    changes = {"max_share": 0.5, "preview_every": 3, "timeout_seconds": 5.0, "grid_columns": 2}
    settings = ValidationConfig(images=7, **changes).without_operational_settings()
    assert settings == ValidationConfig(images=7)
    assert not {"max_share", "preview_every"} & set(settings.model_dump())


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("max_share", 0),
        ("max_share", 1.1),
        ("max_share", float("nan")),
        ("preview_every", -1),
        ("preview_every", 1.5),
    ],
)
def test_bounds_out_of_range_are_refused(setting, value):
    recipe = {**RECIPE.model_dump(), "validation": {setting: value}}
    with pytest.raises(ValidationError, match=setting):
        TrainingConfig.model_validate(recipe)
