"""A validation measures the trained weights and each of their moving averages."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from fractal_model.checkpoints.checkpoint import load_checkpoint
from fractal_model.config.validation import ValidationConfig
from fractal_model.data.holdout import open_held_out_images
from fractal_model.data.prepared import open_prepared
from fractal_model.evaluation.model_quality import measure_held_out
from fractal_model.training.ray_train.measurement import measure
from tests.support.recipes import RECIPE, make_job
from tests.support.tiny_files import save_images, save_tiny

VALIDATION = ValidationConfig(passes=1, grid_classes=1, grid_columns=1)


@pytest.mark.parametrize(
    ("decays", "stored", "suffixes"),
    [
        ((), (), {"model": ""}),
        ((0.9,), ("ema-0.9",), {"model": "", "ema-0.9": "_ema"}),
        ((0.9,), ("ema",), {"model": "", "ema": "_ema"}),
        (
            (0.9, 0.999),
            ("ema-0.9", "ema-0.999"),
            {"model": "", "ema-0.9": "_ema_0.9", "ema-0.999": "_ema_0.999"},
        ),
    ],
)
def test_each_average_has_metrics_and_a_grid_of_its_own(tmp_path: Path, decays, stored, suffixes):
    save_images(tmp_path / "data")
    checkpoint = load_checkpoint(save_tiny(tmp_path / "c", averages=stored))
    recipe = RECIPE.model_copy(update={"ema_decays": decays, "validation": VALIDATION})
    job = make_job(tmp_path / "data", recipe=recipe)
    models = {name: partial(checkpoint.build_model, name) for name in suffixes}
    point, grids = measure(job, models, job.place(64, 8))
    assert point.failure is None
    held_out = open_prepared(tmp_path / "data", "validation")
    expected = {}
    for weights, suffix in suffixes.items():
        bits = measure_held_out(checkpoint.build_model(weights), held_out, VALIDATION)
        expected[f"nll_bits_per_dim{suffix}"] = bits.mean
        expected[f"nll_bits_per_dim{suffix}_stderr"] = bits.standard_error
        scored = job.model_copy(update={"scored_weights": weights})
        assert point.metrics[scored.score] == bits.mean
    assert point.metrics == expected and len(set(expected.values())) == 2 * len(suffixes)
    assert set(grids) == {f"samples{suffix}.png" for suffix in suffixes.values()}
    assert len(set(grids.values())) > 1 or len(grids) == 1


def test_a_holdout_of_the_training_images_needs_no_validation_images(tmp_path: Path):
    data = save_images(tmp_path / "data", split="train", count=12)
    model = load_checkpoint(save_tiny(tmp_path / "c")).build_model()
    recipe = RECIPE.model_copy(update={"holdout": 0.25, "validation": VALIDATION})
    job = make_job(data, recipe=recipe)
    point, _ = measure(job, {"model": lambda: model}, job.place(64, 8), with_grids=False)
    held_out = open_held_out_images(data, 0.25)
    assert len(held_out) == 3
    assert point.metrics["nll_bits_per_dim"] == measure_held_out(model, held_out, VALIDATION).mean
