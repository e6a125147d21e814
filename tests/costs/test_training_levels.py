"""The times of the levels in a training step: none counts twice, and the step stays the same."""

from __future__ import annotations

import time

import pytest
import torch

from fractal_model.config.training import TrainingConfig
from fractal_model.costs.training_levels import Timeline, measure_training_levels, watch_parts
from fractal_model.data.loader import Batch
from fractal_model.training.trainer import Trainer
from tests.support import tiny_model
from tests.support.params import small_params

BATCH = 4


@pytest.fixture
def trainer(kind):
    recipe = small_params()["training"]["digits"] | {"batch_size": BATCH, "images_per_worker": 2}
    config = tiny_model(kind).config
    return Trainer(config, TrainingConfig.model_validate(recipe), images=100)


def batch_for(trainer: Trainer) -> Batch:
    side = trainer.model.config.image_size
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (BATCH, 3, side, side), generator=generator, dtype=torch.uint8)
    return Batch(images, torch.zeros(BATCH, dtype=torch.long), torch.arange(BATCH))


def test_no_part_of_the_step_counts_twice(trainer):
    batch, levels = batch_for(trainer), len(trainer.model.levels)
    gflops = [float(n) for n in range(1, levels + 2)]
    start = time.perf_counter()
    costs = measure_training_levels(trainer.model, lambda: trainer.step(batch), BATCH, gflops)
    elapsed = time.perf_counter() - start
    assert [cost.gflop_per_image for cost in costs] == [*gflops, 0.0]
    assert all(cost.seconds_per_image > 0 for cost in costs)
    assert BATCH * sum(cost.seconds_per_image for cost in costs) <= elapsed
    assert costs[-2].level == "pixels" and costs[-1].level == "optimiser and the rest"


def test_each_part_is_entered_forward_and_then_backward(trainer):
    parts, levels = [], len(trainer.model.levels)
    with watch_parts(trainer.model, parts.append):
        trainer.step(batch_for(trainer))
    changes = [part for i, part in enumerate(parts) if i == 0 or parts[i - 1] != part]
    once = [*range(levels + 1), *range(levels - 1, -1, -1), levels + 1]
    assert changes == once * 2  # The batch has two parts.
    parts.clear()
    trainer.step(batch_for(trainer))
    assert parts == []


def test_watching_changes_no_weight(trainer):
    watched = Trainer(trainer.model.config, trainer.recipe, images=100)
    with watch_parts(watched.model, lambda part: None):
        watched.step(batch_for(watched))
    trainer.step(batch_for(trainer))
    for mine, other in zip(trainer.model.parameters(), watched.model.parameters(), strict=True):
        assert mine.equal(other)


def test_a_part_has_the_time_up_to_the_next_mark(monkeypatch):
    moments = iter([0.0, 1.0, 3.0, 7.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(moments))
    timeline = Timeline(torch.device("cpu"))
    for part in (1, 0, 1, 2):
        timeline.mark(part)
    assert timeline.seconds(3) == [2.0, 5.0, 0.0]
