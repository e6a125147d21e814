"""A tiny AR model that was trained for a few steps on real digits, and settings to tune it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from fractal_model.config.architecture import Architecture
from fractal_model.config.ddo import DDOConfig
from fractal_model.config.params import Size, load_params
from fractal_model.data.digits import prepare_digits
from fractal_model.data.loader import train_loader
from fractal_model.data.prepared import PreparedSplit, open_prepared
from fractal_model.model.fractal import FractalModel
from fractal_model.training.trainer import Trainer
from tests.support.params import SHIPPED

ROW = {
    "patch_sizes": (8, 2, 1),
    "widths": (16, 16, 8),
    "blocks": (1, 1, 1),
    "heads": (2, 2, 2),
    "generators": ("ar", "ar"),
    "num_classes": 10,
}
SETTINGS = DDOConfig(rounds=2, share=0.05, beta=0.1, learning_rate=2e-3, batch_size=16)
"""Two rounds of 10 steps, if the recipe has 2 epochs of 1,500 images."""


def tiny_ar_size() -> Size:
    shipped = load_params(SHIPPED).size("digits")
    changes = {"epochs": 2, "warmup_epochs": 0, "base_learning_rate": 0.08, "log_every_steps": 1}
    return shipped.model_copy(
        update={
            "model": Architecture(**ROW).to_model(),
            "training": shipped.training.model_copy(update=changes),
            "evaluation": shipped.evaluation.model_copy(update={"batch_size": 80}),
        }
    )


def digits_split(folder: Path) -> PreparedSplit:
    """The training images of digits, 1,500 of them, prepared in `folder`."""
    prepare_digits(folder / "digits", validation_images=297, seed=0)
    return open_prepared(folder / "digits", "train")


@cache
def trained_model(folder: Path) -> FractalModel:
    """The model after 12 steps on the digits that are prepared in `folder`."""
    split, size = open_prepared(folder / "digits", "train"), tiny_ar_size()
    trainer = Trainer(size.model, size.training, images=len(split))
    options = {"seed": 0, "position": 0, "batch_size": 32, "end_position": 12 * 32}
    for batch in train_loader(split, **options):
        trainer.step(batch)
    return trainer.model.eval()
