"""From training to the served champion with real servers, on SQLite and on PostgreSQL.

Each test continues where the one before it ended, so they run in this order.
"""

from __future__ import annotations

import base64
import json
import os
import re
import time
from collections.abc import Iterator
from unittest import mock

import httpx
import mlflow
import pytest

from tests.support.live_project import Project, live_project
from tests.support.mlflow_server import running_server
from tests.support.params import small_params
from tests.support.ports import free_ports

FIRST_EPOCHS, BETTER_EPOCHS, WORSE_EPOCHS = 2, 40, 3
"""Epochs of the first version, of a much better one and of a much worse one."""

pytestmark = [pytest.mark.services, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def project(request, tmp_path_factory) -> Iterator[Project]:
    content = small_params()
    content["metrics"]["statistics_images"] = {"digits": 40}
    content["evaluation"]["digits"].update(samples_per_class=4, preview_per_class=1)
    folder = tmp_path_factory.mktemp("evaluation") / "a project"
    with live_project(folder, content, request.param) as project:
        project.fractal("data", "prepare", "digits")
        project.fractal("data", "reference", "digits")
        yield project


def _run_deployment(project: Project, name: str, **parameters: object) -> None:
    """Run a deployment to its end with the command of a user."""
    words = [word for key, value in parameters.items() for word in ("--param", f"{key}={value}")]
    assert "Completed" in project.prefect("deployment", "run", name, *words, "--watch")


def _versions(project: Project) -> dict[str, dict]:
    """The output of `fractal models list` for each version, by number."""
    (model,) = json.loads(project.fractal("models", "list", "--json"))
    return {version["version"]: version for version in model["versions"]}


def _evaluations(project: Project) -> list[str]:
    """Names of the evaluation runs on MLflow's server, without the protocol at the end."""
    server = project.mlflow()
    client = mlflow.MlflowClient(server["MLFLOW_TRACKING_URI"])
    with mock.patch.dict(os.environ, server):
        experiment = client.get_experiment_by_name("fractal-digits")
        runs = client.search_runs([experiment.experiment_id], "tags.`fractal.kind` = 'evaluate'")
    return sorted(re.sub("-[0-9a-f]{6}$", "", run.info.run_name) for run in runs)


def test_nights_are_scheduled(project):
    nights = project.ask_prefect("deployments/filter", deployments={"name": {"any_": ["all"]}})
    assert [night["name"] for night in nights] == ["all"]
    scheduled = {"state": {"type": {"any_": ["SCHEDULED"]}}}
    deadline = time.monotonic() + 120
    while not (runs := project.ask_prefect("flow_runs/filter", flow_runs=scheduled)):
        assert time.monotonic() < deadline
        time.sleep(1)
    assert {run["deployment_id"] for run in runs} == {nights[0]["id"]}
    assert "Traceback" not in (project.folder / "outputs/services/prefect.log").read_text()


def test_the_first_version_becomes_the_champion(project):
    _run_deployment(project, "train-fractal/digits", epochs=FIRST_EPOCHS)
    _run_deployment(project, "evaluate-fractal/digits")
    (first,) = _versions(project).values()
    assert first["version"] == "1" and set(first["aliases"]) == {"candidate", "champion"}
    assert first["decision"] == "there is no champion yet"
    assert {"fid", "fid_stderr", "nll_bits_per_dim", "precision"} <= set(first["metrics"])


def test_a_better_version_becomes_the_champion(project):
    _run_deployment(project, "train-fractal/digits", epochs=BETTER_EPOCHS)
    _run_deployment(project, "evaluate-fractal/digits")
    versions = _versions(project)
    assert set(versions["2"]["aliases"]) == {"candidate", "champion"}
    assert versions["2"]["promoted"] is True
    ours, before = versions["2"]["metrics"], versions["1"]["metrics"]
    assert ours["fid"] < before["fid"]
    assert ours["nll_bits_per_dim"] < before["nll_bits_per_dim"]
    assert _evaluations(project) == ["evaluate-digits-v1", "evaluate-digits-v2"]


def test_a_night_evaluates_only_the_new_version_and_does_not_promote_a_worse_one(project):
    _run_deployment(project, "train-fractal/digits", epochs=WORSE_EPOCHS)
    before = _evaluations(project)
    _run_deployment(project, "nightly-evaluation/all")
    new = ["evaluate-digits-v3", "preview-digits-v3"]
    assert _evaluations(project) == sorted([*before, *new])
    versions = _versions(project)
    assert versions["2"]["aliases"] == ["champion"]
    assert versions["3"]["aliases"] == ["candidate"]
    assert versions["3"]["promoted"] is False
    worse, champion = versions["3"]["metrics"], versions["2"]["metrics"]
    reason = f"FID {worse['fid']:.3f} against {champion['fid']:.3f} (lower by more than "
    assert versions["3"]["decision"].startswith(reason)


def test_a_night_without_new_versions_does_nothing(project):
    before = _evaluations(project)
    versions = _versions(project)
    _run_deployment(project, "nightly-evaluation/all")
    assert _evaluations(project) == before
    assert _versions(project) == versions


def test_the_served_champion_gives_the_images_of_the_sample_command(project, tmp_path):
    source = "models:/fractal-digits@champion"
    words = ["--classes", "3", "--n", "2", "--seed", "7", "--out", str(tmp_path / "sampled")]
    project.fractal("sample", "--model", source, *words)
    port = free_ports(("model",))["model"]
    url = f"http://127.0.0.1:{port}"
    command = ["mlflow", "models", "serve", "--env-manager", "local", "--model-uri", source]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (
        running_server(command, f"{url}/ping", tmp_path, **project.mlflow()),
        httpx.Client(trust_env=False, timeout=120) as client,
    ):
        rows = [{"class": 3, "seed": seed} for seed in (7, 8)]
        answer = client.post(f"{url}/invocations", json={"dataframe_records": rows})
    assert answer.status_code == 200, answer.text
    served = [base64.b64decode(text) for text in answer.json()["predictions"]]
    assert served == [(tmp_path / "sampled" / f"{n}.png").read_bytes() for n in (0, 1)]
