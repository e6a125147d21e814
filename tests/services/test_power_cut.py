"""Killed servers, all at once or supervisord alone, are recognised and started again."""

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


def _server_processes(project: Project) -> list[psutil.Process]:
    return processes.find_processes(str((project.folder / "outputs/services/run").resolve()))


def _runs(project: Project) -> dict[str, list[str]]:
    """The states of each flow's runs, the oldest run first."""
    flows = {flow["id"]: flow["name"] for flow in project.ask_prefect("flows/filter")}
    states: dict[str, list[str]] = {"slow": [], "within": []}
    for run in project.ask_prefect("flow_runs/filter", sort="EXPECTED_START_TIME_ASC"):
        if (name := flows[run["flow_id"]]) in states:  # other runs are scheduled nights
            states[name].append(run["state_name"])
    return states


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def _run_services_command(project: Project, *words: str) -> subprocess.CompletedProcess[str]:
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
            process.suspend()  # so that it cannot start another process
    for process in victims:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(victims, timeout=30)


def test_after_a_power_cut_old_runs_are_crashed_and_their_slots_free(project):
    project.prefect("deployment", "run", "slow/slow")
    _wait(lambda: _runs(project)["within"] == ["Running"])
    project.prefect("deployment", "run", "slow/slow", "--param", "asleep=false")
    _wait(lambda: "AwaitingConcurrencySlot" in _runs(project)["slow"])
    _kill(_server_processes(project))
    assert _run_services_command(project, "status").returncode == 1
    output = project.fractal("services", "up")
    assert output.count("ended when the servers stopped: it is Crashed now") == 1
    _wait(lambda: _runs(project) == {"slow": ["Crashed", "Completed"], "within": ["Crashed"]})


def test_services_continue_without_their_supervisord_and_can_be_stopped(project):
    project.prefect("deployment", "run", "slow/slow")
    _wait(lambda: _runs(project)["within"] == ["Crashed", "Running"])
    run = project.folder / "outputs/services/run"
    _kill([psutil.Process(int((run / "supervisord.pid").read_text()))])
    status = project.fractal("services", "status")
    assert status.count("healthy") == 4
    assert "flow run" in status
    assert "supervisord is down" in status
    up = _run_services_command(project, "up")
    assert up.returncode == 1
    assert up.stderr.startswith("error: the servers run already (prefect healthy, mlflow healthy,")
    assert up.stderr.count("\n") == 1
    assert _runs(project)["within"][-1] == "Running"
    before = _server_processes(project)
    assert project.fractal("services", "down").startswith("stopped: prefect, mlflow, ray, worker")
    assert not [process for process in before if process.is_running()]
    assert _run_services_command(project, "status").returncode == 1
    project.fractal("services", "up")
    assert _runs(project)["slow"][-1] == "Crashed"
