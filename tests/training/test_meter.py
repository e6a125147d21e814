"""What is measured between two reports."""

from __future__ import annotations

import time

import pytest
import torch

from fractal_model.training.meter import Meter
from fractal_model.training.trainer import StepReport
from tests.support.recipes import BATCH, trainer

STEP = StepReport(torch.tensor(2.0), torch.tensor(1.0), 0.1)


def slowly(batches, seconds):
    for batch, pause in zip(batches, seconds, strict=True):
        time.sleep(pause)
        yield batch


def test_the_start_of_the_loader_and_saving_are_not_training_time():
    meter = Meter(trainer(), images=16, workers=1)
    for _ in meter.waiting(slowly([BATCH] * 2, [0.6, 0.0])):
        time.sleep(0.05)
        meter.add(STEP)
        with meter.paused():
            time.sleep(0.3)
    report = meter.report(skipped=0)
    assert report.images_per_second > 2 * len(BATCH.images) / 0.5
    assert report.data_wait_share < 0.5


def test_waiting_for_a_later_batch_is_counted():
    meter = Meter(trainer(), images=16, workers=1)
    for _ in meter.waiting(slowly([BATCH] * 2, [0.0, 0.3])):
        meter.add(STEP)
    report = meter.report(skipped=0)
    assert report.data_wait_share > 0.8
    assert report.loss == pytest.approx(2.0)


def test_a_note_goes_along_once():
    meter = Meter(trainer(), images=16, workers=1)
    meter.note("look")
    meter.note("here")
    assert meter.report(skipped=0).note == "look; here"
    assert meter.report(skipped=0).note is None
