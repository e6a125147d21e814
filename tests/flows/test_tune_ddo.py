"""The flow `tune-ddo`: from a registered version to a new one, and what it refuses."""

from __future__ import annotations

import mlflow
import pytest
import torch

from flows import tune_ddo
from fractal_model.checkpoints.checkpoint import Progress, save_checkpoint
from fractal_model.cli import app
from fractal_model.config.params import load_params
from fractal_model.model.fractal import FractalModel, initialise
from fractal_model.model.weights import weights_checksum
from fractal_model.tracking import registration, registry, runs, store
from fractal_model.tracking.model_source import load_model
from fractal_model.training import launch
from tests.support.params import small_params
from tests.support.projects import Project, make_project

SETTINGS = {"rounds": 2, "share": 0.02, "samples": 20, "batch_size": 50, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def project(tmp_path_factory, prefect) -> Project:
    """A project with prepared digits, and version 1 of an AR model, which is not trained."""
    content = small_params()
    content["models"]["digits"].update(generators=["ar", "ar"], conditions=1)
    content["training"]["digits"].update(ema_decays=[], loader_processes=2)
    content["ddo"] = {"digits": SETTINGS}
    project = make_project(tmp_path_factory.mktemp("project") / "a project", content)
    project.run(app.main, "data", "prepare", "digits")
    size, _ = launch.load_size_and_manifest(load_params(project.params), "digits")
    model = FractalModel(size.model)
    initialise(model, torch.Generator().manual_seed(7))
    progress = Progress(size="digits", fingerprint="f", position=8, steps=1)
    save_checkpoint(project.folder / "model", model=model, optimizer=None, progress=progress)
    store.connect(project.outputs)
    with runs.import_run(size, project.folder / "model", "c" * 64, project.outputs):
        registration.register("digits", project.folder / "model", serving=size.serving, tags={})
    return project


def test_the_result_is_a_new_version_with_its_parent_and_is_reused(project, capsys):
    project.run(tune_ddo.main, "--size", "digits")
    lines = capsys.readouterr().out
    # 0.02 · 3 epochs · 1,757 images are two batches of 50 and a bit: three.
    assert "2 rounds with 6 steps in all; they see 300 real images, 5.7% of the recipe's" in lines
    assert "registered fractal-digits version 2 as candidate" in lines
    parent, tuned = (
        load_model(f"models:/fractal-digits/{number}", project.outputs) for number in (1, 2)
    )
    assert weights_checksum(parent) != weights_checksum(tuned)
    run = mlflow.get_run(
        registry.training_run_id("digits", registry.aliased_version("digits", "candidate"))
    )
    assert run.data.tags["fractal.kind"] == "tune"
    assert run.data.tags["fractal.parent_version"] == "fractal-digits/1"
    assert run.data.params["ddo.share"] == "0.02"
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "ddo_loss")
    assert [metric.step for metric in history] == [50, 100, 150, 200, 250, 300]
    project.run(tune_ddo.main, "--size", "digits", "--model", "models:/fractal-digits/1")
    reused = "fractal-digits version 2 has the same settings and data: it is reused"
    assert reused in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--set", "models.digits.generators=[mar, mar]"], "has MAR levels, whose likelihood"),
        (["--model", "models:/fractal-digits@none"], "has no version models:/fractal-digits@none"),
        (["--set", "models.digits.widths=[32, 16, 8]"], "width in level 0 is 16"),
        (["--set", "ddo.digits.beta=0"], "ddo.digits.beta"),
    ],
)
def test_a_mistake_is_named_on_one_line(error_line, project, options, words):
    assert words in error_line(project, tune_ddo.main, "--size", "digits", *options)
