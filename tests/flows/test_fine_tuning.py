"""The flow `train-fractal` from the weights of a registered version, without workers."""

from __future__ import annotations

import mlflow
import pytest
import torch

from flows import train
from fractal_model.checkpoints.checkpoint import Progress, load_checkpoint, save_checkpoint
from fractal_model.cli import app
from fractal_model.config.params import load_params
from fractal_model.model.fractal import FractalModel, initialise
from fractal_model.model.weights import weights_checksum
from fractal_model.tracking import registration, runs, store
from fractal_model.tracking.model_source import load_model
from fractal_model.tracking.tags import TRAINING_RUN_TAG
from fractal_model.training import launch
from fractal_model.training.job import TrainingJob
from tests.support.params import small_params
from tests.support.projects import Project, make_project


@pytest.fixture(scope="module")
def project(tmp_path_factory, prefect) -> Project:
    """A project with prepared data and version 1 of its model, which no run of its own trained."""
    project = make_project(tmp_path_factory.mktemp("project") / "a project", small_params())
    project.run(app.main, "data", "prepare", "digits")
    params = load_params(project.params)
    size, _ = launch.load_size_and_manifest(params, "digits")
    model = FractalModel(size.model)
    initialise(model, torch.Generator().manual_seed(7))
    progress = Progress(size="digits", fingerprint="f", position=8, steps=1)
    save_checkpoint(project.folder / "model", model=model, optimizer=None, progress=progress)
    store.connect(project.outputs)
    with runs.import_run(size, project.folder / "model", "c" * 64, project.outputs):
        registration.register(
            "digits",
            project.folder / "model",
            serving=size.serving,
            tags={TRAINING_RUN_TAG: "the run that trained it"},
        )
    return project


@pytest.fixture
def start(project, monkeypatch):
    """A function that runs the flow up to the training and returns the training's job."""

    def run_flow(source: str, **options: object) -> TrainingJob:
        jobs = []

        def record_job(job, images, outputs):
            jobs.append(job)
            return str(job.local)

        monkeypatch.setattr(train, "train", record_job)
        monkeypatch.setattr(train, "register", lambda size, checkpoint, tags: "1")
        train.train_fractal(start_from=source, params_file=project.params, **options)
        return jobs[0]

    return run_flow


def test_the_run_has_the_weights_and_the_parent_of_its_start(start, project, capsys):
    job = start("models:/fractal-digits@candidate")
    parent = load_model("models:/fractal-digits/1", project.outputs)
    stored = load_checkpoint(project.outputs / "training/digits" / job.name / "start")
    assert job.start == str(project.outputs / "training/digits" / job.name / "start")
    assert weights_checksum(stored.build_model()) == weights_checksum(parent)
    assert (stored.progress.fingerprint, stored.progress.position) == (job.fingerprint, 0)
    client = mlflow.MlflowClient()
    tags = client.get_run(job.run_id).data.tags
    assert tags["fractal.start_from"] == "models:/fractal-digits@candidate"
    assert tags["fractal.start_sha256"] == weights_checksum(parent)
    assert tags["fractal.parent_version"] == "fractal-digits/1"
    assert tags["fractal.parent_run"] == "the run that trained it"
    line = "first weights: models:/fractal-digits@candidate, version 1\n"
    assert line in capsys.readouterr().out


def test_equal_weights_from_another_source_continue_the_run_and_others_begin_one(start):
    first = start("models:/fractal-digits@candidate")
    again = start(first.start)
    assert (again.fingerprint, again.run_id) == (first.fingerprint, first.run_id)
    anew = start(first.start, resume=False)
    assert (anew.fingerprint, anew.start) == (first.fingerprint, first.start)
    assert anew.run_id != first.run_id
    load_checkpoint(first.local / "start")  # It was stored again in the new folder.


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere", "start_from nowhere: there is no model nowhere: give the folder"),
        ("models:/fractal-digits@none", "has no version models:/fractal-digits@none"),
        ("models:/fractal-digits/1#ema", "there is no moving average"),
        (" ", "start_from: String should match pattern"),
    ],
)
def test_a_mistake_is_named_on_one_line(error_line, project, source, words):
    assert words in error_line(project, train.main, "--start-from", source)
