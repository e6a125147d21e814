"""Real servers of `make up`, on free ports, refuse users without the login and foreign pages."""

from __future__ import annotations

import base64
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from tests.support.chromium import needs_chromium, text_after_login
from tests.support.live_project import Project, live_project
from tests.support.mlflow_server import running_server
from tests.support.params import small_params
from tests.support.ports import free_ports

FOREIGN_HEADERS = {"Host": "10.evil.example", "Origin": "http://evil.example"}
"""Headers that a foreign page sends; by MLflow's default rules the host is a private address."""
EXPERIMENT = {"name": "theirs"}
ASSISTANT = "ajax-api/3.0/mlflow/assistant/config"
"""Path of the settings of MLflow's assistant, which runs commands on this machine."""

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Iterator[Project]:
    with live_project(tmp_path_factory.mktemp("access") / "a project", small_params()) as project:
        yield project


@pytest.fixture
def login(project) -> str:
    return (project.folder / "outputs/services/login").read_text()


@pytest.fixture
def prefect(project) -> Iterator[httpx.Client]:
    """A client of Prefect's API without the login."""
    address = f"http://127.0.0.1:{project.ports['prefect']}/api/"
    with httpx.Client(base_url=address, trust_env=False, timeout=30) as client:
        yield client


def _mlflow_client(port: int) -> httpx.Client:
    return httpx.Client(base_url=f"http://127.0.0.1:{port}/", trust_env=False, timeout=30)


def _run_a_shell(prefect: httpx.Client, file: Path, **options: object) -> list[int]:
    """Ask for a flow run that makes `file` before its flow is loaded; return the status codes of
    making the flow, the deployment and the run."""
    flow = prefect.post("flows/", json={"name": file.name}, **options)
    script = {"prefect.deployments.steps.run_shell_script": {"script": f"touch {file}"}}
    deployment = prefect.post(
        "deployments/",
        json={
            "name": file.name,
            "flow_id": flow.json().get("id", str(uuid4())),
            "entrypoint": "flow.py:flow",
            "work_pool_name": "fractal",
            "pull_steps": [script],
        },
        **options,
    )
    number = deployment.json().get("id", str(uuid4()))
    run = prefect.post(f"deployments/{number}/create_flow_run", json={}, **options)
    return [flow.status_code, deployment.status_code, run.status_code]


def test_prefect_runs_shell_commands_only_with_the_login(prefect, login, tmp_path):
    refused, wrong, accepted = (tmp_path / name for name in ("refused", "wrong", "accepted"))
    assert _run_a_shell(prefect, refused, headers=FOREIGN_HEADERS) == [403, 403, 403]
    assert (
        _run_a_shell(prefect, refused, headers={"Origin": FOREIGN_HEADERS["Origin"]}) == [401] * 3
    )
    assert _run_a_shell(prefect, wrong, auth=("fractal", "guessed")) == [401, 401, 401]
    user, _, password = login.partition(":")
    assert _run_a_shell(prefect, accepted, auth=(user, password)) == [201, 201, 201]
    deadline = time.monotonic() + 120
    while not accepted.exists():
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert not refused.exists() and not wrong.exists()
    # A browser that has logged in also sends the login with the requests of a foreign page.
    foreign = prefect.post(
        "flows/", json={"name": "wrong"}, auth=(user, password), headers=FOREIGN_HEADERS
    )
    assert foreign.status_code == 403 and "unknown host" in foreign.text
    query = {"flows": {"name": {"any_": ["refused", "wrong"]}}}
    assert prefect.post("flows/count", json=query, auth=(user, password)).json() == 0


def test_browsers_let_only_prefects_own_pages_read_its_answers(prefect, project):
    preflight = {"Access-Control-Request-Method": "POST"}
    allowed = {}
    for origin in (f"http://localhost:{project.ports['prefect']}", "http://evil.example"):
        answer = prefect.options("flows/", headers={**preflight, "Origin": origin})
        allowed[origin] = answer.headers.get("Access-Control-Allow-Origin")
    assert list(allowed.values()) == [f"http://localhost:{project.ports['prefect']}", None]


def _require_the_login(mlflow: httpx.Client, login: str) -> None:
    """Require that MLflow answers only with the login, and no foreign page."""
    user, _, password = login.partition(":")
    create = "api/2.0/mlflow/experiments/create"
    for wrong in (None, ("fractal", "guessed")):
        assert mlflow.get("/", auth=wrong).status_code == 401
        assert mlflow.get("get-artifact?run_uuid=1&path=a", auth=wrong).status_code == 401
        assert mlflow.post(create, json=EXPERIMENT, auth=wrong).status_code == 401
        assert mlflow.put(ASSISTANT, json={}, auth=wrong).status_code == 401
    # A browser that has logged in also sends the login with the requests of a foreign page.
    auth = httpx.BasicAuth(user, password)
    for name, value in FOREIGN_HEADERS.items():
        headers = {name: value}
        assert mlflow.post(create, json=EXPERIMENT, auth=auth, headers=headers).status_code == 403
        assert mlflow.put(ASSISTANT, json={}, auth=auth, headers=headers).status_code == 403
    assert mlflow.post(create, json=EXPERIMENT, auth=auth).status_code == 200


def test_mlflow_asks_for_the_login_and_refuses_foreign_pages(project, login):
    with _mlflow_client(project.ports["mlflow"]) as mlflow:
        _require_the_login(mlflow, login)


def test_the_ui_command_asks_for_the_login_and_refuses_foreign_pages(project, tmp_path):
    file = tmp_path / "params.yaml"
    shutil.copy(project.folder / "params.yaml", file)
    port = free_ports(("ui",))["ui"]
    command = ["fractal_model", "ui", "--port", str(port), "--params", str(file)]
    health = f"http://127.0.0.1:{port}/health"
    with (
        running_server(command, health, tmp_path, TMPDIR=str(tmp_path)),
        _mlflow_client(port) as mlflow,
    ):
        secret = tmp_path / "outputs/services/login"
        assert secret.stat().st_mode & 0o777 == 0o600
        _require_the_login(mlflow, secret.read_text())


def test_only_the_owner_can_read_files_with_a_secret(project, login):
    state = project.folder / "outputs/services"
    run = (state / "run").resolve()
    files = {f for folder in (state, run) for f in folder.rglob("*") if f.is_file()}
    password = login.partition(":")[2]
    holders = {f for f in files if password.encode() in f.read_bytes()}
    holders |= {state / "login", state / "ray-token", project.folder / "prefect.toml"}
    assert state / "environment" in holders
    assert all(f.stat().st_mode & 0o077 == 0 for f in holders), holders
    assert not [f for f in holders if f.suffix == ".log"]
    assert state.stat().st_mode & 0o077 == run.stat().st_mode & 0o077 == 0
    assert password not in project.start_output


@pytest.mark.pages
@needs_chromium
def test_prefects_page_uses_its_own_server(project, login):
    """The server has an unusual port, and the page has the login of a user."""
    address = f"http://127.0.0.1:{project.ports['prefect']}/v2/deployments"
    storage = {"prefect-password": base64.b64encode(login.encode()).decode()}
    text = text_after_login(address, storage, "train-fractal")
    assert "train-fractal" in text
    assert "connect to Server API" not in text
