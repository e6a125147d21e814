"""A recipe, a batch and a training job for a tiny model."""

from __future__ import annotations

from pathlib import Path

import torch

from fractal_model.config.params import load_params
from fractal_model.data.loader import Batch
from fractal_model.training.job import TrainingJob
from fractal_model.training.trainer import Trainer
from tests.support import random_images, tiny_config
from tests.support.params import SHIPPED

RECIPE = (
    load_params(SHIPPED)
    .size("digits")
    .training.model_copy(
        update={
            "batch_size": 8,
            "epochs": 10,
            "warmup_epochs": 1,
            "base_learning_rate": 0.1,
            "validate_every_epochs": 0,
        }
    )
)

SAMPLING = load_params(SHIPPED).size("digits").sampling.model_copy(update={"iterations": (4, 4)})
BATCH = Batch(random_images(8, size=4), torch.arange(8) % 4, torch.arange(8))


def make_job(folder: Path, **changes: object) -> TrainingJob:
    """A training job of a tiny model with RECIPE, whose files are all in `folder`."""
    job = TrainingJob(
        size="tiny",
        model=tiny_config("mar"),
        recipe=RECIPE,
        data=folder,
        storage=str(folder),
        local=folder,
        fingerprint="f" * 64,
        tracking_uri="",
        run_id="",
        images=64,
        sampling=SAMPLING,
    )
    return job.model_copy(update=changes)


def trainer(kind="mar", **recipe):
    config = tiny_config(kind, dropout=0.1)
    return Trainer(config, RECIPE.model_copy(update=recipe), images=16)


def weights(trainer: Trainer) -> list[torch.Tensor]:
    """A copy of the model's weights."""
    return [p.detach().clone() for p in trainer.model.parameters()]
