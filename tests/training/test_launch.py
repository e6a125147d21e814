"""The fingerprint of a run covers what decides its weights, and nothing else."""

from __future__ import annotations

import pytest

import fractal_model
from fractal_model.common.errors import FractalError
from fractal_model.config.params import Size, load_params
from fractal_model.config.training import TrainingConfig
from fractal_model.data.manifest import Manifest
from fractal_model.training.launch import load_size_and_manifest, run_fingerprint
from fractal_model.training.start import Start
from tests.support import tiny_config
from tests.support.params import SHIPPED

RECIPE = {
    "dataset": "tiny",
    "epochs": 2,
    "warmup_epochs": 1,
    "batch_size": 8,
    "base_learning_rate": 0.1,
    "weight_decay": 0.05,
    "betas": [0.9, 0.95],
    "clip_norm": 3.0,
    "ema_decay": 0.0,
    "label_drop": 0.1,
    "flip": False,
    "precision": "float32",
    "activation_checkpointing": False,
    "compile": False,
    "workers": 2,
    "min_workers": 2,
    "resources_per_worker": {"CPU": 1},
    "accelerator_type": None,
    "images_per_worker": 16,
    "loader_processes": 0,
    "checkpoint_every_epochs": 1,
    "checkpoint_every_minutes": 30,
    "keep_checkpoints": 2,
    "log_every_steps": 10,
    "max_failures": 2,
    "stall_seconds": 120,
    "non_finite": "skip",
    "max_non_finite": 3,
    "seed": 0,
}
"""Every setting that a recipe had before the first optional one."""
SPLIT = {
    "images": 1,
    "images_per_class": (1, 0, 0, 0),
    "checksum": "a" * 64,
    "shards": ({"file": "train/0.arrow", "images": 1, "bytes": 1},),
}
MANIFEST = Manifest(
    dataset="tiny",
    source="nowhere",
    preprocessing="none",
    resolution=4,
    class_names=tuple("abcd"),
    splits={"train": SPLIT},
)


def fingerprint_of(*, checksum: str | None = None, **recipe: object) -> str:
    """Fingerprint of a tiny run that starts from weights with `checksum`, or from random ones."""
    training = TrainingConfig.model_validate({**RECIPE, **recipe})
    size = load_params(SHIPPED).size("digits")
    size = Size(**{**dict(size), "model": tiny_config("mar"), "training": training})
    start = None if checksum is None else Start("here", "b" * 64, None, checksum, 4, 0, None)
    return run_fingerprint(size, MANIFEST, start)


def test_a_run_from_random_weights_has_the_fingerprint_of_earlier_versions(monkeypatch):
    """An interrupted run of an earlier version continues, and a finished one is reused."""
    monkeypatch.setattr(fractal_model, "__version__", "0.1.0")
    assert fingerprint_of() == "e4cc948be3f80eaf54954e6a3db455029536c236e62db6517f417f1705ef5ba8"


def test_the_content_of_the_first_weights_decides_and_not_the_name_of_their_source():
    runs = {
        fingerprint_of(),
        fingerprint_of(checksum="c" * 64, start_from="models:/fractal-tiny@champion"),
        fingerprint_of(checksum="d" * 64, start_from="models:/fractal-tiny@champion"),
    }
    assert len(runs) == 3
    assert fingerprint_of(checksum="c" * 64, start_from="folder") in runs


def test_a_holdout_is_another_run():
    assert fingerprint_of(holdout=0) == fingerprint_of() != fingerprint_of(holdout=0.1)


@pytest.mark.parametrize("source", ["", " ", "x" * 5000, 3])
def test_a_source_that_is_no_text_is_refused(source):
    with pytest.raises(ValueError, match="start_from"):
        TrainingConfig.model_validate({**RECIPE, "start_from": source})


def test_a_size_that_samples_with_a_guide_is_not_trained():
    params = load_params(SHIPPED, ["sampling.digits.guide=models:/fractal-digits/1"])
    with pytest.raises(FractalError, match="the guide models:/fractal-digits/1, which is not sto"):
        load_size_and_manifest(params, "digits")
