"""Prefect's automations with the real servers, and slots that come back from ended runs."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from fractal_model.services import processes
from tests.support.chromium import needs_chromium, text_after_login
from tests.support.live_project import Project, live_project
from tests.support.params import small_params

pytestmark = [pytest.mark.services, pytest.mark.timeout(1200)]

HEARTBEAT_SECONDS = 30
"""The shortest time that Prefect allows."""
SILENCE_SECONDS = 3 * HEARTBEAT_SECONDS
"""Time without a heartbeat after which a run is ended."""
NEXT_RUN_SECONDS = 90
"""Bound on the start of a run that waited for a slot: Prefect looks every 30 s, the worker every
15 s."""
SLOW = """
import time
from prefect import flow

@flow
def slow(seconds: float = 900):
    time.sleep(seconds)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Iterator[Project]:
    content = small_params()
    content["evaluation"]["digits"].update(samples_per_class=3)
    folder = tmp_path_factory.mktemp("automations") / "a project"
    heartbeat = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS)}
    with live_project(folder, content, evaluates=True, **heartbeat) as project:
        (project.folder / "slow.py").write_text(SLOW)
        words = ["deploy", "slow.py:slow", "-n", "slow", "-p", "fractal", "-t", "fractal"]
        project.prefect("--no-prompt", *words, "--concurrency-limit", "1")
        yield project


def _wait(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.5)


def _runs(project: Project, name: str) -> list[dict]:
    """The flow runs whose names begin with `name`, the oldest first."""
    query = {"flow_runs": {"name": {"like_": name}}, "sort": "EXPECTED_START_TIME_ASC"}
    return project.ask_prefect("flow_runs/filter", **query)


def _state(project: Project, run: str) -> str:
    (read,) = project.ask_prefect("flow_runs/filter", flow_runs={"id": {"any_": [run]}})
    return read["state_name"]


def _announced(project: Project) -> int:
    """Number of versions that trainings have announced."""
    query = {"filter": {"event": {"name": ["fractal.version.registered"]}}}
    return len(project.ask_prefect("events/filter", **query)["events"])


@pytest.mark.pages
@needs_chromium
def test_prefects_form_describes_the_parameters_of_a_size(project):
    query = {"deployments": {"name": {"any_": ["digits"]}, "tags": {"all_": ["cpu"]}}}
    deployments = project.ask_prefect("deployments/filter", **query)
    (training,) = [each for each in deployments if each["entrypoint"].startswith("flows.train.")]
    address = f"http://127.0.0.1:{project.ports['prefect']}/v2/deployments/deployment"
    login = base64.b64encode(":".join(project.login()).encode()).decode()
    properties = training["parameter_openapi_schema"]["properties"]
    text = text_after_login(
        f"{address}/{training['id']}/run",
        {"prefect-password": login},
        " ".join(properties["precision"]["description"].split()),
    )
    missing = [
        name
        for name, schema in properties.items()
        if " ".join(schema["description"].split()) not in " ".join(text.split())
    ]
    assert missing == [], text


def test_a_training_is_followed_by_one_evaluation_of_its_version(project):
    project.fractal("data", "prepare", "digits")
    project.fractal("data", "reference", "digits")
    output = project.prefect("deployment", "run", "train-fractal/digits", "--watch")
    assert "Completed" in output
    _wait(lambda: _runs(project, "evaluate-digits"), NEXT_RUN_SECONDS)
    (evaluation,) = _runs(project, "evaluate-digits")
    _wait(lambda: _state(project, evaluation["id"]) == "Completed", 240)
    expected = {"size": "digits", "model": "models:/fractal-digits/1"}
    assert expected.items() <= evaluation["parameters"].items()
    (model,) = json.loads(project.fractal("models", "list", "--json"))
    (version,) = model["versions"]
    assert version["promoted"] is True and "fid" in version["metrics"]
    assert _announced(project) == len(_runs(project, "evaluate-digits")) == 1


def test_a_training_that_reuses_its_version_is_not_followed_by_an_evaluation(project):
    output = project.prefect("deployment", "run", "train-fractal/digits", "--watch")
    assert "Completed" in output
    # The next training has another version: when its evaluation is there, one of the former
    # training would be there, too.
    words = ("train-fractal/digits", "--param", "epochs=1", "--watch")
    assert "Completed" in project.prefect("deployment", "run", *words)
    _wait(lambda: len(_runs(project, "evaluate-digits")) >= 2, NEXT_RUN_SECONDS)
    models = [run["parameters"]["model"] for run in _runs(project, "evaluate-digits")]
    assert models == ["models:/fractal-digits/1", "models:/fractal-digits/2"]
    assert _announced(project) == 2
    last = _runs(project, "evaluate-digits")[-1]["id"]
    _wait(lambda: _state(project, last) == "Completed", 240)


def _start(project: Project, **parameters: object) -> str:
    """Start a run of the slow flow and return its id."""
    words = [word for k, v in parameters.items() for word in ("--param", f"{k}={v}")]
    output = project.prefect("deployment", "run", "slow/slow", *words)
    return re.search(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", output).group()


def _run_and_queue(project: Project) -> tuple[str, str]:
    """Start two runs, of which the second one waits for the slot of the first; return their ids."""
    first = _start(project)
    _wait(lambda: _state(project, first) == "Running", NEXT_RUN_SECONDS)
    second = _start(project, seconds=0)
    _wait(lambda: _state(project, second) == "AwaitingConcurrencySlot", NEXT_RUN_SECONDS)
    return first, second


def _processes(project: Project, command: str) -> list[psutil.Process]:
    """The servers' processes whose command line has this text."""
    folder, matches = str((project.folder / "outputs/services/run").resolve()), []
    for process in processes.find_processes(folder):
        with contextlib.suppress(psutil.NoSuchProcess):
            line = " ".join(process.cmdline())
            matches += [process] if command in line else []
    return matches


def test_a_killed_run_gives_its_slot_back(project):
    first, second = _run_and_queue(project)
    (flow,) = _processes(project, "prefect.engine")
    flow.kill()
    _wait(lambda: _state(project, first) == "Crashed", 30)
    _wait(lambda: _state(project, second) == "Completed", NEXT_RUN_SECONDS)


def test_a_cancelled_run_gives_its_slot_back(project):
    first, second = _run_and_queue(project)
    project.prefect("flow-run", "cancel", first)
    _wait(lambda: _state(project, first) == "Cancelled", 60)
    _wait(lambda: _state(project, second) == "Completed", NEXT_RUN_SECONDS)


@pytest.mark.parametrize("end", ["Crashed", "Cancelled"])
def test_a_run_that_was_killed_with_its_worker_ends(project, end):
    """Nobody is left who could report its end. The servers start another worker."""
    first, second = _run_and_queue(project)
    time.sleep(5)  # until the first heartbeat has been sent
    victims = [*_processes(project, "prefect worker start"), *_processes(project, "prefect.engine")]
    assert len(victims) == 2
    for process in victims:
        process.kill()
    if end == "Cancelled":
        project.prefect("flow-run", "cancel", first)
    assert _state(project, first) == {"Crashed": "Running", "Cancelled": "Cancelling"}[end]
    _wait(lambda: _state(project, first) == end, SILENCE_SECONDS + 60)
    _wait(lambda: _state(project, second) == "Completed", NEXT_RUN_SECONDS)
