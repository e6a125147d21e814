"""Speed, data waiting time and notes between two reports of a worker."""

from __future__ import annotations

import time

import pytest
import torch

from fractal_model.training.meter import Meter
from fractal_model.training.trainer import StepReport
from tests.support.recipes import BATCH, trainer

STEP = StepReport(torch.tensor(2.0), torch.tensor(1.0), 0.1)


def yield_slowly(batches, seconds):
    for batch, pause in zip(batches, seconds, strict=True):
        time.sleep(pause)
        yield batch


def test_starting_the_loader_and_saving_are_not_training_time():
    meter = Meter(trainer(), images=16, workers=1)
    for _ in meter.time_loading(yield_slowly([BATCH] * 2, [0.6, 0.0])):
        time.sleep(0.05)
        meter.add_step(STEP)
        with meter.pause():
            time.sleep(0.3)
    report = meter.finish_report(skipped=0)
    assert report.images_per_second > 2 * len(BATCH.images) / 0.5
    assert report.data_wait_share < 0.5


def test_waiting_for_a_later_batch_is_counted():
    meter = Meter(trainer(), images=16, workers=1)
    for _ in meter.time_loading(yield_slowly([BATCH] * 2, [0.0, 0.3])):
        meter.add_step(STEP)
    report = meter.finish_report(skipped=0)
    assert report.data_wait_share > 0.8
    assert report.loss == pytest.approx(2.0)


def test_notes_are_in_one_report_only():
    meter = Meter(trainer(), images=16, workers=1)
    meter.add_note("look")
    meter.add_note("here")
    assert meter.finish_report(skipped=0).note == "look; here"
    assert meter.finish_report(skipped=0).note is None
