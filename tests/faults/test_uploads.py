"""Training continues while a slow storage takes a checkpoint."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fractal_model.training.ray_train.upload import Upload
from fractal_model.training.ray_train.worker import train_worker
from fractal_model.training.trainer import Trainer
from tests.support.disturbed_runs import BATCH, IMAGES

LATER_POSITION = IMAGES + 4 * BATCH
"""Position two reports after the first checkpoint."""


def _worker_with_slow_uploads(seconds: float, file: Path):
    """Return a worker whose uploads end at LATER_POSITION of training, or after `seconds`. The
    first upload writes the position of its end to `file`."""

    def worker(config):
        copy, start_step, at = Upload.__call__, Trainer.start_step, {"position": 0}

        def upload_slowly(upload, checkpoint, name):
            deadline = time.monotonic() + seconds
            while at["position"] < LATER_POSITION and time.monotonic() < deadline:
                time.sleep(0.02)
            if not file.exists():
                file.write_text(str(at["position"]))
            return copy(upload, checkpoint, name)

        def start_and_count(trainer, batch):
            at["position"] = trainer.position
            return start_step(trainer, batch)

        Upload.__call__, Trainer.start_step = upload_slowly, start_and_count
        train_worker(config)

    return worker


@pytest.mark.faults
def test_training_continues_while_a_checkpoint_is_uploaded(new_run, cluster, tmp_path):
    run = new_run(epochs=2, max_failures=0)
    run.train(worker=_worker_with_slow_uploads(30.0, tmp_path / "reached"))
    assert int((tmp_path / "reached").read_text()) >= LATER_POSITION
    every_report = list(range(2 * BATCH, 2 * IMAGES + 1, 2 * BATCH))
    assert [report.position for report in run.reports] == every_report
