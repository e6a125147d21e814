"""`resume=False`: a folder, an MLflow run and metrics of its own; what was there is kept."""

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
def anew(tmp_path_factory, prefect) -> Project:
    project = make_project(tmp_path_factory.mktemp("anew") / "a project", small_params())
    project.run(app.main, "data", "prepare", "digits")
    return project


@pytest.fixture
def started(anew, monkeypatch):
    """Runs the flow up to where the workers would start, and says which MLflow run it is."""

    def start(*, resume: bool) -> str:
        jobs = []

        def leave(job, images, outputs):
            jobs.append(job)
            folder = job.local / "checkpoint"
            folder.mkdir(parents=True, exist_ok=True)
            return str(folder)

        monkeypatch.setattr(train, "train", leave)
        monkeypatch.setattr(train, "register", lambda size, checkpoint, tags: "1")
        train.train_fractal(resume=resume, params_file=anew.params)
        return jobs[0].run_id

    return start


def test_the_old_run_is_neither_found_nor_added_to(started, anew):
    first = started(resume=True)
    second = started(resume=False)
    assert second != first
    assert started(resume=True) == second
    tags = mlflow.MlflowClient().get_run(first).data.tags
    assert tags[SUPERSEDED_TAG] == "true"
    folders = sorted(path.name for path in (anew.outputs / "training/digits").iterdir())
    assert len(folders) == 2
    assert folders[1].startswith(f"{folders[0]}-20")
    assert (anew.outputs / "training/digits" / folders[1] / "checkpoint").is_dir()


@pytest.fixture
def params(anew, tmp_path) -> Params:
    """Runs are kept in a folder elsewhere."""
    params = load_params(anew.params)
    paths = params.paths.model_copy(update={"training": str(tmp_path / "runs")})
    return params.model_copy(update={"paths": paths})


@pytest.fixture
def waiting(params, request):
    """A run in both folders, and one report that MLflow does not have; mark, run and spool."""
    store.connect(params.paths.outputs)
    experiment = store.get_or_create_experiment("digits", params.paths.outputs)
    run_id = mlflow.MlflowClient().create_run(experiment).info.run_id
    mark = hashlib.sha256(request.node.name.encode()).hexdigest()
    kept = Path(launch.storage(params, "digits")) / mark[:16]
    kept.mkdir(parents=True)
    (kept / "checkpoint").touch()
    folder = launch.local_folder(params, "digits", mark) / "metrics" / run_id
    MetricSpool(folder, run_id).log({"loss": 2.0}, step=7)
    return mark, run_id, folder


def test_metrics_arrive_and_both_folders_are_renamed(params, waiting):
    mark, run_id, folder = waiting
    aside = launch.move_old_run_aside(params, "digits", mark)
    (point,) = mlflow.MlflowClient().get_metric_history(run_id, "loss")
    assert (point.step, point.value) == (7, 2.0)
    assert (aside / "checkpoint").exists()
    assert str(aside).startswith(f"{launch.storage(params, 'digits')}/{mark[:16]}-20")
    assert not (aside.parent / mark[:16]).exists()
    assert not folder.exists()


def test_metrics_that_mlflow_does_not_take_keep_all_in_place(params, waiting, monkeypatch):
    mark, _, folder = waiting
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
        with pytest.raises(FractalError, match="1 reports .* not in MLflow yet") as caught:
            launch.move_old_run_aside(params, "digits", mark)
    finally:
        mlflow.set_tracking_uri(uri)
    assert "\n" not in str(caught.value)
    assert json.loads((folder / "metrics.jsonl").read_text())["step"] == 7


def test_an_object_store_is_left_to_the_person(params):
    mark = "d" * 64
    paths = params.paths.model_copy(update={"training": "s3://runs"})
    with pytest.raises(FractalError, match=f"s3://runs/digits/{mark[:16]}"):
        launch.move_old_run_aside(params.model_copy(update={"paths": paths}), "digits", mark)


def test_nothing_was_there(params):
    assert launch.move_old_run_aside(params, "digits", "c" * 64) is None
