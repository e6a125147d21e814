"""Trainings that start from existing weights, with workers that fail."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fractal_model.checkpoints.checkpoint import Progress, save_checkpoint
from fractal_model.common.errors import FractalError
from fractal_model.data.loader import train_loader
from fractal_model.data.prepared import open_prepared
from fractal_model.training.ray_train.worker import train_worker
from fractal_model.training.trainer import Trainer
from tests.faults.conftest import MODEL
from tests.support import tiny_model
from tests.support.disturbed_runs import IMAGES, Run, assert_equal, training_workers

pytestmark = pytest.mark.faults


@pytest.fixture
def started_run(new_run):
    """A function that makes a run of one worker and stores the weights that it starts from."""

    def make(**recipe: object) -> tuple[Run, dict[str, Tensor]]:
        run = new_run(workers=1, min_workers=1, start_from="a source that is gone", **recipe)
        model = tiny_model("mar", sharpen=2.0)
        progress = Progress(size="tiny", fingerprint=run.job.fingerprint, position=0, steps=0)
        save_checkpoint(Path(run.job.start), model=model, optimizer=None, progress=progress)
        return run, model.state_dict()

    return make


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute in this process with one thread, as a worker with one CPU does: sums in another order
    are not equal to the bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train_here(run: Run, first: dict[str, Tensor], bad: int | None = None) -> dict[str, Tensor]:
    """Train in this process from the weights `first`, without the batch at the position `bad`."""
    recipe, split = run.job.recipe, open_prepared(run.job.data, "train")
    trainer = Trainer(MODEL, recipe, images=IMAGES, start=lambda: first)
    loader = train_loader(
        split,
        seed=recipe.seed,
        position=0,
        batch_size=recipe.batch_size,
        rank=0,
        world_size=1,
        num_workers=0,
        flip=recipe.flip,
        end_position=trainer.end_position,
    )
    for batch in loader:
        trainer.skip_batch() if trainer.position == bad else trainer.step(batch)
    return trainer.model.state_dict()


def test_a_killed_run_ends_with_the_weights_of_an_undisturbed_one(started_run, cluster, one_thread):
    run, first = started_run(max_failures=3)
    killer = run.when(2 * IMAGES, lambda: training_workers()[0].send_signal(signal.SIGKILL))
    weights = run.train()
    killer.join()
    assert_equal(weights, train_here(run, first))


def test_a_roll_back_to_the_beginning_returns_to_the_first_weights(
    started_run, cluster, one_thread
):
    def worker(config):
        original = Trainer._backward

        def backward(trainer, *arguments):
            losses = original(trainer, *arguments)
            factor = float("nan") if trainer.position == 8 else 1.0
            return tuple(loss * factor for loss in losses)

        Trainer._backward = backward
        train_worker(config)

    run, first = started_run(non_finite="roll-back", max_failures=0, epochs=2)
    weights = run.train(worker=worker)
    assert run.reports[-1].skipped_batches == 1
    assert_equal(weights, train_here(run, first, bad=8))


def test_damaged_first_weights_end_the_run_with_their_name(started_run, cluster):
    run, _ = started_run(max_failures=0)
    file = Path(run.job.start) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(FractalError, match="start is damaged: model.safetensors") as raised:
        run.train()
    assert "\n" not in str(raised.value)
    assert not run.reports
