"""Workers that die, hang, or compute numbers that are not finite."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fractal_model.checkpoints.checkpoint import verify_checkpoint
from fractal_model.common.errors import FractalError
from fractal_model.data.order import stream_indices
from fractal_model.training.ray_train.worker import train_worker
from fractal_model.training.trainer import Trainer
from tests.support.disturbed_runs import BATCH, IMAGES, assert_equal, training_workers

MOMENTS = np.random.default_rng(5).integers(0, 5 * IMAGES, size=5).tolist()


@pytest.mark.parametrize(
    "moment",
    [pytest.param(m, marks=() if i == 0 else pytest.mark.faults) for i, m in enumerate(MOMENTS)],
)
def test_a_run_with_a_killed_worker_reaches_the_same_weights(new_run, straight, moment):
    run = new_run(max_failures=3)
    killer = run.when(moment, lambda: training_workers()[0].send_signal(signal.SIGKILL))
    weights = run.train()
    killer.join()
    assert_equal(weights, straight)
    positions = [report.position for report in run.reports]
    assert positions[-1] == 6 * IMAGES
    assert len(positions) > len(set(positions)) or positions != sorted(positions) or moment < IMAGES


@pytest.mark.faults
def test_a_stopped_worker_is_ended_and_replaced(new_run, straight):
    run = new_run(max_failures=3)
    stopped = []

    def stop():
        stopped.extend(training_workers()[:1])
        stopped[0].send_signal(signal.SIGSTOP)

    thread = run.when(2 * IMAGES, stop)
    assert_equal(run.train(), straight)
    thread.join()
    assert not stopped[0].is_running()


@pytest.mark.faults
def test_a_worker_that_hangs_is_replaced_after_stall_seconds(new_run, straight, tmp_path):
    hung = tmp_path / "hung"

    def worker(config):
        original = Trainer._backward

        def backward(trainer, *arguments):
            if trainer._rank == 1 and trainer.position == IMAGES + BATCH and not hung.exists():
                hung.touch()
                time.sleep(600)  # The process still answers Ray.
            return original(trainer, *arguments)

        Trainer._backward = backward
        train_worker(config)

    run = new_run(max_failures=3)
    started = time.monotonic()
    assert_equal(run.train(worker=worker), straight)
    assert hung.exists()
    assert time.monotonic() - started < 300


@pytest.mark.faults
def test_a_single_worker_that_hangs_is_replaced_too(new_run, tmp_path):
    """Nobody waits for it, so it has to notice this itself."""
    hung = tmp_path / "hung"

    def worker(config):
        original = Trainer._backward

        def backward(trainer, *arguments):
            if trainer.position == IMAGES + BATCH and not hung.exists():
                hung.touch()
                time.sleep(600)
            return original(trainer, *arguments)

        Trainer._backward = backward
        train_worker(config)

    alone = {"workers": 1, "min_workers": 1, "max_failures": 1, "epochs": 2}
    straight = new_run("straight", **alone).train()
    started = time.monotonic()
    assert_equal(new_run(**alone).train(worker=worker), straight)
    assert hung.exists()
    assert time.monotonic() - started < 300


@pytest.mark.faults
def test_the_last_checkpoints_are_kept_undamaged(straight_run):
    last = sorted(path for path in straight_run.folder.glob("checkpoint_*") if path.is_dir())
    assert len(last) == 2
    for checkpoint in last:
        verify_checkpoint(checkpoint)


def _worker_with_bad_losses(positions: tuple[int, ...], rank: int):
    """Return a worker whose loss on `rank` is not finite at `positions`."""

    def worker(config):
        original = Trainer._backward

        def backward(trainer, images, labels, generator):
            hook = None
            if trainer._rank == rank and trainer.position in positions:
                hook = trainer._loss.register_forward_hook(lambda m, inputs, out: out * torch.nan)
            try:
                return original(trainer, images, labels, generator)
            finally:
                if hook is not None:
                    hook.remove()

        Trainer._backward = backward
        train_worker(config)

    return worker


@pytest.mark.faults
@pytest.mark.parametrize("choice", ["skip", "roll-back"])
@pytest.mark.parametrize("batches", [2, 3])
def test_a_batch_with_a_bad_loss_on_one_rank_is_skipped(new_run, cluster, choice, batches):
    """A report follows the step of every second batch, so the loss of the first of these batches is
    only known a step later."""
    bad = 2 * IMAGES + batches * BATCH
    run = new_run(non_finite=choice, max_failures=0)
    weights = run.train(worker=_worker_with_bad_losses((bad,), rank=1))
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert run.reports[-1].skipped_batches == 1
    assert run.reports[-1].position == 6 * IMAGES
    (note,) = [report.note for report in run.reports if report.note]
    images = stream_indices(seed=0, start=bad + BATCH // 2, count=BATCH // 2, size=IMAGES)
    assert f"images {images.tolist()}" in note
    times = [report.position for report in run.reports].count(2 * IMAGES + 2 * BATCH)
    assert times == (2 if choice == "roll-back" else 1)
    newest = sorted(run.folder.glob("checkpoint_*/progress.json"))[-1]
    assert json.loads(newest.read_text())["skipped"] == [bad]


@pytest.mark.faults
@pytest.mark.parametrize(("choice", "max_non_finite"), [("stop", 3), ("skip", 1)])
def test_too_many_bad_losses_end_the_run_and_their_images_are_named(
    new_run, cluster, choice, max_non_finite
):
    second = IMAGES + 2 * BATCH
    bad = (IMAGES + BATCH,) if choice == "stop" else (IMAGES + BATCH, second)
    run = new_run(non_finite=choice, max_non_finite=max_non_finite, max_failures=5)
    with pytest.raises(FractalError) as raised:
        run.train(worker=_worker_with_bad_losses(bad, rank=1))
    positions = [report.position for report in run.reports]
    assert positions == sorted(set(positions))  # No step was repeated.
    images = stream_indices(seed=0, start=bad[-1] + BATCH // 2, count=BATCH // 2, size=IMAGES)
    assert f"images {images.tolist()}" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert list(Path(run.folder).glob("checkpoint_*/COMPLETE"))
