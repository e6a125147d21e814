"""Servers that were killed, all at once or supervisord alone, in a project folder of their own."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from fractal_model.services import processes
from tests.support.live_project import Project, environment, live_project
from tests.support.params import small_params

pytestmark = [pytest.mark.services, pytest.mark.faults]

FLOWS = """
import time
from prefect import flow

@flow
def within():
    time.sleep(600)

@flow
def slow(asleep: bool = True):
    if asleep:
        within()
"""
DEPLOY = ("--no-prompt", "deploy", "slow.py:slow", "-n", "slow", "-p", "fractal")


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def project(request, tmp_path_factory) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("power") / "a project"
    with live_project(folder, small_params(), request.param) as project:
        (project.folder / "slow.py").write_text(FLOWS)
        project.prefect(*DEPLOY, "--concurrency-limit", "1")
        yield project


def _marked(project: Project) -> list[psutil.Process]:
    return processes.marked(str((project.folder / "outputs/services/run").resolve()))


def _runs(project: Project) -> dict[str, list[str]]:
    """States by flow, the oldest run first."""
    flows = {each["id"]: each["name"] for each in project.ask_prefect("flows/filter")}
    states: dict[str, list[str]] = {"slow": [], "within": []}
    for run in project.ask_prefect("flow_runs/filter", sort="EXPECTED_START_TIME_ASC"):
        if (name := flows[run["flow_id"]]) in states:  # nights are planned too
            states[name].append(run["state_name"])
    return states


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def _try(project: Project, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fractal_model", "services", *words],
        cwd=project.folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )


def _kill(victims: list[psutil.Process]) -> None:
    for process in victims:
        with contextlib.suppress(psutil.Error):
            process.suspend()  # so that none can start another
    for process in victims:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(victims, timeout=30)


def test_a_run_of_before_a_power_cut_is_crashed_and_its_slot_is_free(project):
    project.prefect("deployment", "run", "slow/slow")
    _wait(lambda: _runs(project)["within"] == ["Running"])
    project.prefect("deployment", "run", "slow/slow", "--param", "asleep=false")
    _wait(lambda: "AwaitingConcurrencySlot" in _runs(project)["slow"])
    _kill(_marked(project))
    assert _try(project, "status").returncode == 1
    said = project.fractal("services", "up")
    assert said.count("ended with the servers before: it is Crashed now") == 1
    _wait(lambda: _runs(project) == {"slow": ["Crashed", "Completed"], "within": ["Crashed"]})


def test_what_a_killed_supervisord_left_is_seen_and_left_at_work(project):
    project.prefect("deployment", "run", "slow/slow")
    _wait(lambda: _runs(project)["within"] == ["Crashed", "Running"])
    run = project.folder / "outputs/services/run"
    _kill([psutil.Process(int((run / "supervisord.pid").read_text()))])
    status = project.fractal("services", "status")
    assert status.count("healthy") == 4
    assert "flow run" in status
    assert "supervisord does not answer" in status
    up = _try(project, "up")
    assert up.returncode == 1
    assert up.stderr.startswith("error: the servers run already (prefect healthy, mlflow healthy,")
    assert up.stderr.count("\n") == 1
    assert _runs(project)["within"][-1] == "Running"
    left = _marked(project)
    assert project.fractal("services", "down").startswith("stopped: prefect, mlflow, ray, worker")
    assert not [process for process in left if process.is_running()]
    assert _try(project, "status").returncode == 1
    project.fractal("services", "up")
    assert _runs(project)["slow"][-1] == "Crashed"
