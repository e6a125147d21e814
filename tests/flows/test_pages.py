"""MLflow's pages of two trained and evaluated versions of `digits`, in a browser.

FRACTAL_SCREENSHOTS=docs writes the pictures of the pages to docs, where docs/training.md and
docs/evaluation.md show them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pytest

from flows import evaluate, train
from fractal_model.cli import app
from fractal_model.tracking import registry
from fractal_model.tracking.tags import TRAINING_RUN_TAG
from tests.support.chromium import Page, browser_page, needs_chromium
from tests.support.mlflow_server import Server
from tests.support.params import small_params
from tests.support.projects import Project, make_project

pytestmark = [pytest.mark.pages, needs_chromium, pytest.mark.timeout(1200)]

EPOCHS = (12, 1)
"""Epochs of the versions. The first one is the better one, and stays the champion."""
BEGIN = """
localStorage.setItem("mlflow.workflowType_v1", '"machine_learning"');
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
"""
"""The choice "Model training" above MLflow's menu, and an assistant that stays closed."""
CHARTS = "^(loss|nll_bits_per_dim|samples)$"
"""Regular expression for MLflow's search of a run's charts."""
RUN_NAMES = """
[...document.querySelectorAll(".ag-row")]
  .filter((row) => row.innerText.includes("evaluate-"))
  .sort((a, b) => a.getAttribute("row-index") - b.getAttribute("row-index"))
  .map((row) => row.innerText.match(/evaluate-[-a-z0-9]+/)[0])
"""
"""Names of the evaluations in MLflow's table of runs, from top to bottom."""


class Trained:
    """A project with trained and evaluated versions, and the server of its store."""

    def __init__(self, project: Project) -> None:
        self.folder = project.folder
        project.run(app.main, "data", "prepare", "digits")
        project.run(app.main, "data", "reference", "digits")
        for epochs in EPOCHS:
            project.run(train.main, "--epochs", str(epochs))
            project.run(evaluate.main)
        self.experiment = mlflow.get_experiment_by_name("fractal-digits").experiment_id
        self.server = Server(project.folder, project.outputs / "mlflow" / "mlflow.db")

    @contextmanager
    def page(self, address: str, size: tuple[int, int]) -> Iterator[Page]:
        """Yield MLflow's page of the experiment at `address`, in a window of this size."""
        with browser_page() as page:
            uri = f"{self.server.uri}/#/experiments/{self.experiment}/{address}"
            page.open(uri, script=BEGIN, size=size)
            yield page

    def save(self, page: Page, name: str) -> None:
        folder = os.environ.get("FRACTAL_SCREENSHOTS", self.folder)
        page.save(Path(folder).resolve() / name)


@pytest.fixture(scope="module")
def trained(prefect: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    content = small_params()
    content["models"]["digits"].update(widths=[64, 32, 16], blocks=[2, 1, 1])
    content["training"]["digits"].update(
        ema_decays=[], validate_every_epochs=2, batch_size=50, workers=1, min_workers=1
    )
    content["evaluation"]["digits"].update(samples_per_class=5)
    trained = Trained(make_project(tmp_path_factory.mktemp("pages") / "a project", content))
    trained.server.start()
    yield trained
    trained.server.kill()


def test_evaluations_are_sorted_by_fid_with_the_champion_first(trained):
    """The link in the experiment's description, for MLflow's tab Models sorts by time alone."""
    assert registry.aliased_version("digits", registry.CHAMPION) == "1"
    with trained.page("runs", (1500, 500)) as page:
        link = "[...document.querySelectorAll('a')].find((a) => a.innerText.includes('lowest FID'))"
        page.open(page.wait(f"{link}?.href"))
        page.wait_for_text("2 matching runs")
        page.wait(f"({RUN_NAMES}).length === {len(EPOCHS)}")
        names = page.evaluate(RUN_NAMES)
    assert [name.split("-")[2] for name in names] == ["v1", "v2"]


def test_the_models_tab_has_the_fid_of_each_version(trained):
    models = mlflow.search_logged_models([trained.experiment], output_format="list")
    fids = [m.value for model in models for m in model.metrics if m.key == "fid"]
    assert len(fids) == len(EPOCHS)
    with trained.page("models?viewMode=CHART", (1500, 1000)) as page:
        bars = "[...document.querySelectorAll('.bartext')].map((e) => e.innerHTML)"
        for fid in fids:
            page.wait(f"{bars}.includes('{fid:.2f}')")
        trained.save(page, "mlflow-models.png")


def test_a_trainings_page_shows_its_grids_and_its_held_out_curve(trained):
    run_id = registry.training_run_id("digits", "1")
    steps = [m.step for m in mlflow.MlflowClient().get_metric_history(run_id, "nll_bits_per_dim")]
    assert len(steps) >= 6
    slider = "document.querySelector('[role=slider]')"
    with trained.page(f"runs/{run_id}/model-metrics", (1500, 640)) as page:
        page.type("document.querySelector('[placeholder*=metric]')", CHARTS)
        assert page.wait(f"{slider}?.ariaValueMax") == str(max(steps))
        page.wait("document.querySelectorAll('.scatterlayer .trace').length >= 2")
        page.evaluate(f"{slider}.focus()")
        for step in sorted(steps):  # The slider begins at 0, which has no grid.
            page.press("ArrowRight")
            page.wait(f"{slider}.ariaValueNow === '{step}'")
        grid = "[...document.querySelectorAll('img')].find((i) => i.naturalWidth > 40)"
        page.wait(f"({grid}.scrollIntoView({{block: 'center'}}), true)")
        trained.save(page, "mlflow-training.png")


def test_training_and_evaluation_open_each_other(trained):
    training = mlflow.get_run(registry.training_run_id("digits", "1"))
    (evaluation,) = mlflow.search_runs(
        [trained.experiment],
        f"tags.`{TRAINING_RUN_TAG}` = '{training.info.run_id}'",
        output_format="list",
    )
    with trained.page(f"runs/{training.info.run_id}", (1500, 1300)) as page:
        for run in (evaluation, training):
            name = run.info.run_name
            link = f"[...document.querySelectorAll('a')].find((a) => a.innerText === {name!r})"
            # The link opens a new tab, so the test follows its address.
            page.open(page.wait(f"{link}?.href"))
            page.wait(f"document.querySelector('h1,h2,h3')?.innerText === {name!r}")
            assert page.evaluate("location.href").endswith(run.info.run_id)


def test_the_page_of_a_version_has_the_numbers_of_its_evaluation(trained):
    version = mlflow.MlflowClient().get_model_version("fractal-digits", "1")
    with browser_page() as page:
        page.open(f"{trained.server.uri}/#/models/fractal-digits/versions/1", script=BEGIN)
        page.wait_for_text("evaluate-digits-v1")
        text = page.text()
    assert "fid\t" in text and "nll_bits_per_dim\t" in text
    assert version.description.count("| `") > 5
