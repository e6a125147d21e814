"""MLflow's pages of three evaluated `digits` runs in a browser, and commands that read their store.

FRACTAL_SCREENSHOTS=docs writes the pictures of the pages to docs, where docs/results.md shows them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from typer.testing import CliRunner

from fractal_model.cli.app import app
from tests.support.chromium import needs_chromium, page_html
from tests.support.evaluated import GUIDANCE, evaluate_three
from tests.support.mlflow_server import Server

pytestmark = pytest.mark.pages


class Evaluated:
    """A project folder with three evaluated runs, and the server of its store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        params, self.run_ids = evaluate_three(folder)
        self.runs = [mlflow.get_run(run_id) for run_id in self.run_ids]
        self.report = mlflow.artifacts.load_text(f"runs:/{self.run_ids[0]}/report.html")
        self.server = Server(folder, params.paths.outputs / "mlflow" / "mlflow.db")

    def command(self, *arguments: str) -> str:
        words = ["results", *arguments, "--params", str(self.folder / "params.yaml")]
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        assert done.exit_code == 0
        return done.output

    def page(self, address: str, picture: str, size: str) -> str:
        screenshots = os.environ.get("FRACTAL_SCREENSHOTS")
        file = Path(screenshots or self.folder).resolve() / picture
        return page_html(f"{self.server.uri}/#/{address}", picture=file, size=size)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evaluated]:
    project = Evaluated(tmp_path_factory.mktemp("evaluated"))
    project.server.start()
    yield project
    project.server.kill()


@needs_chromium
def test_the_comparison_page_has_names_and_numbers(evaluated):
    ids = json.dumps(evaluated.run_ids, separators=(",", ":"))
    experiment = evaluated.runs[0].info.experiment_id
    address = f'compare-runs?runs={ids}&experiments=["{experiment}"]'
    page = evaluated.page(address, "mlflow-compare.png", "1500,2250")
    assert "Comparing 3 Runs" in page and "fractal-digits" in page
    assert page.count("evaluate-digits-v1") >= len(GUIDANCE)
    for run in evaluated.runs:
        for name, digits in (("fid", ".4g"), ("nll_bits_per_dim", ".4g"), ("kid", ".3f")):
            assert name in page and format(run.data.metrics[name], digits) in page
    assert len({run.data.metrics["fid"] for run in evaluated.runs}) == len(GUIDANCE)


@needs_chromium
def test_the_registered_models_page_has_its_version_alias_and_description(evaluated):
    page = evaluated.page("models/fractal-digits", "mlflow-model.png", "1500,900")
    for text in ("fractal-digits", "Version 1", "candidate", "model of the size", "imported fro"):
        assert text in page


@needs_chromium
def test_the_runs_page_has_its_description_and_metrics(evaluated):
    run = evaluated.runs[0].info
    address = f"experiments/{run.experiment_id}/runs/{run.run_id}"
    page = evaluated.page(address, "mlflow-run.png", "1500,1500")
    for text in ("evaluate-digits-v1", "Evaluation of one version", "nll_bits_per_dim", "fid"):
        assert text in page


@needs_chromium
def test_the_logged_report_opens_in_a_browser(evaluated):
    file = evaluated.folder / "report.html"
    file.write_text(evaluated.report)
    screenshots = os.environ.get("FRACTAL_SCREENSHOTS")
    picture = Path(screenshots or evaluated.folder).resolve() / "report.png"
    page = page_html(file.as_uri(), picture=picture, size="1100,3600", wait_ms=2000)
    metrics = evaluated.runs[0].data.metrics
    for name in ("fid", "nll_bits_per_dim"):
        assert f"{metrics[name]:.4g}" in page
    assert "models:/fractal-digits/1 on digits" in page


def test_an_evaluation_has_all_artifacts(evaluated):
    client = mlflow.MlflowClient()
    names = {file.path for file in client.list_artifacts(evaluated.run_ids[0])}
    expected = {"report.html", "results.json", "protocol.json", "samples.png", "likelihood.png"}
    assert expected <= names


def test_results_show_the_runs_beside_the_published_numbers(evaluated):
    rows = json.loads(evaluated.command("--format", "json"))
    ours = {row["run"]: row for row in rows if row["dataset"] == "digits"}
    assert ours.keys() == set(evaluated.run_ids)
    for run, guidance in zip(evaluated.runs, GUIDANCE, strict=True):
        row = ours[run.info.run_id]
        assert row["model"] == "fractal-digits version 1" and row["comparable"]
        assert row["fid"] == pytest.approx(run.data.metrics["fid"], rel=1e-12)
        assert row["guidance"] == guidance
    assert any(row["model"] == "FractalMAR-H" and row["fid"] == 6.15 for row in rows)
    assert "published: Li et al." in evaluated.command()


def test_results_of_one_data_set_are_written_to_a_file(evaluated, tmp_path):
    out = tmp_path / "made" / "results.md"
    printed = evaluated.command("--dataset", "digits", "--format", "markdown", "--output", str(out))
    assert "3 rows" in printed
    assert out.read_text().count("| fractal-digits version 1 ") == len(GUIDANCE)
