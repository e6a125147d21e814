"""A storage that is slow."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fractal_model.training.ray_train.upload import Upload
from fractal_model.training.ray_train.worker import train_worker
from fractal_model.training.trainer import Trainer
from tests.support.disturbed_runs import BATCH, IMAGES

FURTHER = IMAGES + 4 * BATCH
"""Two reports after the first checkpoint."""


def _slow(seconds: float, file: Path):
    """The worker, with an upload that ends when training has come further, or after so long; it
    writes down how far that was."""

    def worker(config):
        copy, step, at = Upload.__call__, Trainer.step, {"position": 0}

        def slow(upload, checkpoint, name):
            deadline = time.monotonic() + seconds
            while at["position"] < FURTHER and time.monotonic() < deadline:
                time.sleep(0.02)
            if not file.exists():
                file.write_text(str(at["position"]))
            return copy(upload, checkpoint, name)

        def counted(trainer, batch):
            at["position"] = trainer.position
            return step(trainer, batch)

        Upload.__call__, Trainer.step = slow, counted
        train_worker(config)

    return worker


@pytest.mark.faults
def test_training_goes_on_while_a_checkpoint_is_uploaded(new_run, cluster, tmp_path):
    run = new_run(epochs=2, max_failures=0)
    run.train(worker=_slow(30.0, tmp_path / "reached"))
    assert int((tmp_path / "reached").read_text()) >= FURTHER
    every_report = list(range(2 * BATCH, 2 * IMAGES + 1, 2 * BATCH))
    assert [report.position for report in run.reports] == every_report
