"""Speed, data waiting time and notes between two reports of a worker."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch

import fractal_model.training.meter as meter_module
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


def test_a_report_within_a_pause_counts_the_steps_alone(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(meter_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    meter, reports = Meter(trainer(), images=16, workers=1), []
    for _ in range(2):
        clock.now += 1
        meter.add_step(STEP)
        with meter.pause():
            clock.now += 5
            reports.append(meter.finish_report(skipped=0))
            clock.now += 2
    assert [report.images_per_second for report in reports] == [8.0, 8.0]


def test_waiting_for_a_later_batch_is_counted():
    meter = Meter(trainer(), images=16, workers=1)
    for _ in meter.time_loading(yield_slowly([BATCH] * 2, [0.0, 0.3])):
        meter.add_step(STEP)
    report = meter.finish_report(skipped=0)
    assert report.data_wait_share > 0.8
    assert report.loss == pytest.approx(2.0)


def test_operations_are_those_of_one_worker_in_a_second():
    """Four workers share an image's operations, 2 · 10⁹ for each of 8 images."""
    meter = Meter(trainer(), images=16, workers=4, gflop_per_image=2.0, peak_gflops=100.0)
    meter.add_step(STEP)
    time.sleep(0.1)
    report = meter.finish_report(skipped=0)
    gflops = report.images_per_second * 2.0 / 4
    assert 0 < gflops < 8 * 2.0 / 4 / 0.1
    assert report.tflops == pytest.approx(gflops / 1000)
    assert report.mfu == pytest.approx(gflops / 100)
    assert report.gpu_memory_gb is None


def test_without_operations_there_is_no_efficiency():
    report = Meter(trainer(), images=16, workers=1).finish_report(skipped=0)
    assert (report.tflops, report.mfu, report.eta_hours) == (None, None, None)


def test_the_time_left_is_at_the_speed_of_the_last_report():
    work = trainer()
    work.position = 40  # of 10 epochs with 16 images
    meter = Meter(work, images=16, workers=1)
    meter.add_step(STEP)
    time.sleep(0.05)
    report = meter.finish_report(skipped=0)
    assert report.eta_hours == pytest.approx(120 / report.images_per_second / 3600)


def test_notes_are_in_one_report_only():
    meter = Meter(trainer(), images=16, workers=1)
    meter.add_note("look")
    meter.add_note("here")
    assert meter.finish_report(skipped=0).note == "look; here"
    assert meter.finish_report(skipped=0).note is None
