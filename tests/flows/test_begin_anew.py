"""`resume=False` starts a new folder and MLflow run; the old ones are renamed and stay."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import mlflow
import pytest

from flows import train
from fractal_model.cli import app
from fractal_model.common.errors import FractalError
from fractal_model.config.params import Params, load_params
from fractal_model.tracking import store
from fractal_model.tracking.spool import MetricSpool
from fractal_model.tracking.tags import SUPERSEDED_TAG
from fractal_model.training import launch
from tests.support.params import small_params
from tests.support.projects import Project, make_project


@pytest.fixture(scope="module")
def project(tmp_path_factory, prefect) -> Project:
    project = make_project(tmp_path_factory.mktemp("project") / "a project", small_params())
    project.run(app.main, "data", "prepare", "digits")
    return project


@pytest.fixture
def start(project, monkeypatch):
    """A function that runs the flow without workers and returns the id of its MLflow run."""

    def run_flow(*, resume: bool) -> str:
        jobs = []

        def record_job(job, images, outputs):
            jobs.append(job)
            folder = job.local / "checkpoint"
            folder.mkdir(parents=True, exist_ok=True)
            return str(folder)

        monkeypatch.setattr(train, "train", record_job)
        monkeypatch.setattr(train, "register", lambda size, checkpoint, tags: "1")
        train.train_fractal(resume=resume, params_file=project.params)
        return jobs[0].run_id

    return run_flow


def test_the_old_run_is_neither_found_nor_continued(start, project):
    first = start(resume=True)
    second = start(resume=False)
    assert second != first
    assert start(resume=True) == second
    tags = mlflow.MlflowClient().get_run(first).data.tags
    assert tags[SUPERSEDED_TAG] == "true"
    folders = sorted(path.name for path in (project.outputs / "training/digits").iterdir())
    assert len(folders) == 2
    assert folders[1].startswith(f"{folders[0]}-20")
    assert (project.outputs / "training/digits" / folders[1] / "checkpoint").is_dir()


@pytest.fixture
def params(project, tmp_path) -> Params:
    """Settings that store runs in a folder outside the outputs."""
    params = load_params(project.params)
    paths = params.paths.model_copy(update={"training": str(tmp_path / "runs")})
    return params.model_copy(update={"paths": paths})


@pytest.fixture
def old_run(params, request):
    """A run in both folders with one undelivered report: its fingerprint, run id and spool."""
    store.connect(params.paths.outputs)
    experiment = store.get_or_create_experiment("digits", params.paths.outputs)
    run_id = mlflow.MlflowClient().create_run(experiment).info.run_id
    fingerprint = hashlib.sha256(request.node.name.encode()).hexdigest()
    stored = Path(launch.storage(params, "digits")) / fingerprint[:16]
    stored.mkdir(parents=True)
    (stored / "checkpoint").touch()
    folder = launch.local_folder(params, "digits", fingerprint) / "metrics" / run_id
    MetricSpool(folder, run_id).log({"loss": 2.0}, step=7)
    return fingerprint, run_id, folder


def test_metrics_arrive_and_both_folders_are_renamed(params, old_run):
    fingerprint, run_id, folder = old_run
    aside = launch.move_old_run_aside(params, "digits", fingerprint)
    (point,) = mlflow.MlflowClient().get_metric_history(run_id, "loss")
    assert (point.step, point.value) == (7, 2.0)
    assert (aside / "checkpoint").exists()
    assert str(aside).startswith(f"{launch.storage(params, 'digits')}/{fingerprint[:16]}-20")
    assert not (aside.parent / fingerprint[:16]).exists()
    assert not folder.exists()


def test_undelivered_metrics_keep_all_in_place(params, old_run, monkeypatch):
    fingerprint, _, folder = old_run
    uri = mlflow.get_tracking_uri()
    monkeypatch.setattr(
        MetricSpool.__init__,
        "__kwdefaults__",
        {
            "retry_seconds": 0.1,
            "leave_seconds": 1.0,
        },
    )
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    try:
        with pytest.raises(
            FractalError, match="reports of the earlier run are not in MLflow"
        ) as raised:
            launch.move_old_run_aside(params, "digits", fingerprint)
    finally:
        mlflow.set_tracking_uri(uri)
    assert "\n" not in str(raised.value)
    assert json.loads((folder / "metrics.jsonl").read_text())["step"] == 7


def test_a_run_in_an_object_store_is_named_for_the_person(params):
    fingerprint = "d" * 64
    paths = params.paths.model_copy(update={"training": "s3://runs"})
    with pytest.raises(FractalError, match=f"s3://runs/digits/{fingerprint[:16]}"):
        launch.move_old_run_aside(params.model_copy(update={"paths": paths}), "digits", fingerprint)


def test_without_an_old_run_nothing_is_renamed(params):
    assert launch.move_old_run_aside(params, "digits", "c" * 64) is None
