"""Validation points of a training run in MLflow."""

import logging
from pathlib import Path

import mlflow
import pytest
import torch

from fractal_model.generation.pictures import png_bytes
from fractal_model.tracking.spool import MetricSpool
from fractal_model.tracking.store import connect
from fractal_model.tracking.validation_log import ValidationLog

PNG = png_bytes(torch.zeros(3, 8, 8, dtype=torch.uint8))
BITS = {"nll_bits_per_dim": 0.5}


@pytest.fixture
def run_id(tmp_path: Path) -> str:
    connect(tmp_path)
    return mlflow.MlflowClient().create_run("0").info.run_id


def log_points(run_id: str, folder: Path, *steps: int) -> None:
    with MetricSpool(folder / "metrics", run_id) as spool, ValidationLog(run_id, spool) as log:
        for step in steps:
            log.add(step, BITS, {"samples.png": PNG})


def steps_of_grids(run_id: str) -> list[int]:
    images = mlflow.MlflowClient().list_artifacts(run_id, "images")
    names = [image.path for image in images if image.path.endswith(".png")]
    return sorted(int(name.split("+step+")[1].split("+")[0]) for name in names)


def steps_of_metrics(run_id: str) -> list[int]:
    history = mlflow.MlflowClient().get_metric_history(run_id, "nll_bits_per_dim")
    return sorted(metric.step for metric in history)


def test_metrics_and_grids_come_by_step_and_once(run_id, tmp_path):
    log_points(run_id, tmp_path, 100, 200)
    log_points(run_id, tmp_path, 100, 200, 300)  # A continued run reads all its points again.
    history = mlflow.MlflowClient().get_metric_history(run_id, "nll_bits_per_dim")
    assert [(metric.step, metric.value) for metric in history] == [
        (s, 0.5) for s in (100, 200, 300)
    ]
    assert steps_of_grids(run_id) == [100, 200, 300]


def test_a_grid_that_mlflow_refuses_is_sent_later(run_id, tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "log_image", refuse)
        with caplog.at_level(logging.WARNING):
            log_points(run_id, tmp_path, 100)
    assert "validation points are not in MLflow (1, no route)" in caplog.text
    log_points(run_id, tmp_path, 100)
    assert steps_of_grids(run_id) == [100]


def refuse(*_: object, **__: object) -> None:
    raise ConnectionError("no route")


def test_a_point_that_waits_in_the_spool_is_logged_once(run_id, tmp_path, monkeypatch):
    folder = tmp_path / "metrics"
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "log_batch", refuse)
        spool = MetricSpool(folder, run_id, leave_seconds=0.1)
        with spool, ValidationLog(run_id, spool) as log:
            log.add(100, BITS, {})
    assert spool.undelivered == 1
    log_points(run_id, tmp_path, 100)  # MLflow has no such point when the log asks.
    assert steps_of_metrics(run_id) == [100]


def test_nothing_is_sent_before_mlflow_has_said_what_it_has(run_id, tmp_path, monkeypatch):
    log_points(run_id, tmp_path / "elsewhere", 100)
    with MetricSpool(tmp_path / "metrics", run_id) as spool, ValidationLog(run_id, spool) as log:
        with monkeypatch.context() as patch:
            patch.setattr(mlflow.MlflowClient, "get_metric_history", refuse)
            log.add(100, BITS, {"samples.png": PNG})
            log.add(200, BITS, {"samples.png": PNG})
            assert spool.steps_of("nll_bits_per_dim") == set()
        log.add(300, BITS, {})
    assert steps_of_metrics(run_id) == [100, 200, 300]
    assert steps_of_grids(run_id) == [100, 200]
