"""The driver of a training: what it prints and logs of validation points."""

from contextlib import nullcontext

import mlflow
import pytest

from fractal_model.tracking import store
from fractal_model.training.job import TrainingJob
from fractal_model.training.ray_jobs import driver
from fractal_model.training.ray_train.validation_points import ValidationPoints, follow_points
from tests.support.recipes import make_job


@pytest.fixture
def job(tmp_path) -> TrainingJob:
    uri = store.connect(tmp_path)
    run_id = mlflow.MlflowClient().create_run("0").info.run_id
    return make_job(tmp_path, tracking_uri=uri, run_id=run_id)


def test_a_continued_run_prints_new_points_only(job, monkeypatch):
    points = ValidationPoints.of_run(job.storage, job.name)

    def add_point(position: int) -> None:
        metrics = {"nll_bits_per_dim": 0.5}
        points.start(position)
        points.finish(job.place(position, 1).model_copy(update={"metrics": metrics}), {})

    def run_training(job, *, on_report, on_point) -> str:
        with follow_points(points, on_point):
            add_point(128)
        return "checkpoint"

    monkeypatch.setattr(driver, "ray_cluster", lambda cpus: nullcontext())
    monkeypatch.setattr(driver, "run_training", run_training)
    add_point(64)
    lines: list[str] = []
    assert driver.drive(job, on_report=lambda report: None, on_line=lines.append) == "checkpoint"
    assert lines == ["tiny, epoch 2.00: 0.5000 bits/dim held out"]
    history = mlflow.MlflowClient().get_metric_history(job.run_id, "nll_bits_per_dim")
    assert sorted(metric.step for metric in history) == [64, 128]
