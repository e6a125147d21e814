"""Problems of the servers are reported on one line, and nothing is left running."""

from __future__ import annotations

import shlex
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from fractal_model.common.errors import FractalError
from fractal_model.common.locks import hold_lock
from fractal_model.config.params import load_params
from fractal_model.config.services import ServicesConfig
from fractal_model.services import control, processes
from fractal_model.services.configuration import RUN_VARIABLE
from fractal_model.services.control import Services
from fractal_model.services.deployments import remove_settings, write_settings
from fractal_model.services.folder import ServicesFolder
from tests.support.params import small_params
from tests.support.ports import free_ports

SLEEP = "import time; time.sleep(600)"


@pytest.fixture
def services(tmp_path) -> Services:
    """The servers of a project, with free ports."""
    project = tmp_path / "a project"
    project.mkdir()
    content = small_params()
    content["services"] = {**free_ports(), "startup_seconds": 3}
    file = project / "params.yaml"
    file.write_text(yaml.safe_dump(content))
    params = load_params(file)
    return Services(file, params.services, params.paths.outputs)


def _replace_servers(monkeypatch, code: str) -> None:
    """Let a real supervisord run a small program instead of each server."""
    real_configuration = control.supervisor_configuration

    def configuration(config, folder, run):
        # The code is not in a file, because a test that moves the project would move the file too.
        program = shlex.join([str(Path(sys.executable).resolve()), "-c", code])
        lines = real_configuration(config, folder, run).splitlines()
        return "\n".join(
            f"command={program}" if line.startswith("command=") else line for line in lines
        )

    monkeypatch.setattr(control, "supervisor_configuration", configuration)


@pytest.mark.parametrize("key", ["prefect", "mlflow", "ray", "ray_client", "ray_dashboard"])
def test_a_taken_port_is_named(services, key):
    port = services.config.ports()[key]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(FractalError) as raised:
            services.up(print)
    line = str(raised.value)
    assert f"port {port} of 127.0.0.1 is taken by process" in line
    assert f"services.{key} in params.yaml" in line
    assert services.folder.run is None


def test_a_server_that_dies_at_its_start_is_named_with_its_last_lines(services, monkeypatch):
    _replace_servers(
        monkeypatch, "print('first'); print('the disk is on fire'); raise SystemExit(3)"
    )
    with pytest.raises(FractalError) as raised:
        services.up(print)
    line = str(raised.value)
    assert line.startswith(
        "prefect stopped while it was starting: first | the disk is on fire (whole log: "
    )
    assert str(services.folder.log("prefect")) in line
    assert "\n" not in line
    assert services.folder.run is None


def test_a_server_that_never_answers_is_stopped(services, monkeypatch):
    _replace_servers(monkeypatch, "import time; print('waiting', flush=True); time.sleep(600)")
    with pytest.raises(FractalError, match=r"prefect does not answer after 3 s .*: waiting"):
        services.up(print)
    assert services.folder.run is None
    assert services.status() == []


def test_servers_that_run_already_are_not_started_again(services, monkeypatch):
    _replace_servers(monkeypatch, SLEEP)
    monkeypatch.setattr(control, "deploy", lambda *_: ["train-fractal/digits"])
    monkeypatch.setattr(control, "crash_dead_runs", lambda *_, before: [])
    services._checks = dict.fromkeys(services._checks, lambda: True)
    lines: list[str] = []
    services.up(lines.append)
    run = services.folder.run
    try:
        assert any(line.startswith("ray is up: http://127.0.0.1:") for line in lines)
        with pytest.raises(FractalError, match=r"run already \(prefect healthy, .*make down"):
            services.up(print)
        assert [s.name for s in services.status()] == ["prefect", "mlflow", "ray", "worker"]
        assert services.folder.prefect_settings.exists()
    finally:
        stopped = services.down()
    assert sorted(stopped) == ["mlflow", "prefect", "ray", "worker"]
    assert processes.find_processes(str(run)) == []
    assert not services.folder.prefect_settings.exists()
    assert services.down() == []


@pytest.fixture
def started(services, monkeypatch) -> Iterator[Path]:
    """The run folder of running servers, which are small programs."""
    _replace_servers(monkeypatch, SLEEP)
    monkeypatch.setattr(control, "deploy", lambda *_: [])
    monkeypatch.setattr(control, "crash_dead_runs", lambda *_, before: [])
    monkeypatch.setattr(control, "RAY_EXIT_SECONDS", 0.1)
    services._checks = dict.fromkeys(services._checks, lambda: True)
    services.up(print)
    run = services.folder.run
    _wait_for_servers(run)
    yield run
    processes.end_processes(processes.find_processes(str(run)), grace_seconds=5)
    shutil.rmtree(run, ignore_errors=True)


def _wait_for_servers(run: Path) -> None:
    """Wait until supervisord has started all, which the servers' replaced checks do not show."""
    deadline = time.monotonic() + 60
    while True:
        services = processes.find_processes(str(run), processes.SERVICE_VARIABLE)
        commands = [service.cmdline() for service in services]
        if [command[-1] for command in commands if command] == [SLEEP] * 4:
            return
        assert time.monotonic() < deadline, commands
        time.sleep(0.05)


def _kill_supervisord(run: Path) -> None:
    daemon = psutil.Process(int((run / "supervisord.pid").read_text()))
    daemon.kill()
    daemon.wait(10)


def test_services_without_their_supervisord_are_found_and_stopped(services, started):
    flow_run = subprocess.Popen(
        [sys.executable, "-c", SLEEP],
        env={
            RUN_VARIABLE: str(started),
            processes.SERVICE_VARIABLE: "worker",
            processes.FLOW_RUN_VARIABLE: "its-id",
        },
    )
    _kill_supervisord(started)
    assert not services.is_supervised()
    status = {service.name: (service.state, service.pid) for service in services.status()}
    flow_run_state = status.pop("flow run its-id")
    assert list(status) == ["prefect", "mlflow", "ray", "worker"]
    assert {state for state, _ in status.values()} == {"healthy"}
    assert flow_run_state == ("running", flow_run.pid)
    before = {process.pid for process in processes.find_processes(str(started))}
    assert before == {flow_run.pid, *(pid for _, pid in status.values())}
    with pytest.raises(FractalError, match=r"run already \(prefect healthy, .*its-id running\)"):
        services.up(print)
    assert {process.pid for process in processes.find_processes(str(started))} == before
    assert services.down() == [*status, "flow run its-id"]
    assert processes.find_processes(str(started)) == []
    assert services.status() == []
    flow_run.wait(10)


def test_servers_start_again_after_a_power_cut(services, started):
    _kill_supervisord(started)
    processes.end_processes(processes.find_processes(str(started)), grace_seconds=0)
    assert services.status() == []
    services.up(print)
    try:
        assert services.folder.run not in (None, started)
        assert not started.exists()
        assert len(services.status()) == 4
    finally:
        services.down()


def _services_at(services: Services, project: Path) -> Services:
    """The servers of the same project in another folder."""
    other = Services(project / "params.yaml", services.config, project / "outputs")
    other._checks = services._checks
    return other


def test_servers_are_found_after_their_project_was_moved(services, started, tmp_path):
    moved = services.folder.project.rename(tmp_path / "moved")
    assert len(_services_at(services, moved).status()) == 4
    assert len(_services_at(services, moved).down()) == 4
    assert processes.find_processes(str(started)) == []


def test_servers_are_found_after_the_temporary_folder_was_cleaned(services, started):
    shutil.rmtree(started)
    assert len(services.status()) == 4
    assert len(services.down()) == 4
    assert processes.find_processes(str(started)) == []


def test_a_copy_of_the_project_does_not_stop_the_servers(services, started, tmp_path):
    copy = shutil.copytree(services.folder.project, tmp_path / "copy", symlinks=True)
    assert _services_at(services, copy).status() == []
    assert _services_at(services, copy).down() == []
    assert len(services.status()) == 4


def test_the_status_command_fails_if_nothing_runs(services):
    done = subprocess.run(
        [sys.executable, "-m", "fractal_model", "services", "status"],
        cwd=services.folder.project,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stdout == "nothing is running: `make up` starts the servers\n"


def test_only_processes_of_the_run_folder_are_ended(tmp_path):
    sleep = [sys.executable, "-c", SLEEP]
    ours, other = str(tmp_path / "ours"), str(tmp_path / "other")
    running = [subprocess.Popen(sleep, env={RUN_VARIABLE: run}) for run in (ours, other)]
    try:
        matches = processes.find_processes(ours)
        assert [p.pid for p in matches] == [running[0].pid]
        processes.end_processes(matches, grace_seconds=5)
        assert processes.find_processes(ours) == []
        assert running[1].poll() is None
    finally:
        for process in running:
            process.kill()
            process.wait()


def test_up_is_refused_while_another_process_starts_or_stops_the_servers(services):
    with (
        hold_lock(services.folder.state / "starting.lock"),
        pytest.raises(FractalError, match="another process is at work here"),
    ):
        services.up(print)


def test_a_prefect_that_does_not_take_deployments_is_an_error(services):
    """Nothing listens at Prefect's address."""
    services.folder.state.mkdir(parents=True)
    with pytest.raises(FractalError) as raised:
        control.deploy(services.config, services.folder, ())
    line = str(raised.value)
    assert line.startswith("the deployments could not be made: ")
    assert f"error: Prefect's server {services.config.prefect_api} does not accept" in line
    assert "\n" not in line


def test_a_work_pool_that_cannot_be_resumed_is_an_error(services, monkeypatch):
    """The deployments are made, but then Prefect does not answer."""
    services.folder.state.mkdir(parents=True)
    monkeypatch.setattr(sys, "executable", "true")
    with pytest.raises(FractalError, match=r"^Prefect did not resume the work pool: .*again$"):
        control.deploy(services.config, services.folder, ())


def test_prefect_toml_turns_on_the_plugin_that_excludes_proxies(tmp_path):
    folder = ServicesFolder(tmp_path / "params.yaml", tmp_path / "outputs")
    write_settings(ServicesConfig(), folder)
    settings = tomllib.loads(folder.prefect_settings.read_text())
    assert settings["plugins"] == {"enabled": True}
    assert settings["api"]["url"] == "http://127.0.0.1:4200/api"


def test_the_users_own_prefect_toml_is_not_changed(tmp_path):
    folder = ServicesFolder(tmp_path / "params.yaml", tmp_path / "outputs")
    file = folder.prefect_settings
    file.write_text("[api]\nurl = 'http://theirs/api'\n")
    with pytest.raises(
        FractalError, match=r"not written by `make up`.*127.0.0.1:4200/api.*login"
    ) as raised:
        write_settings(ServicesConfig(), folder)
    assert folder.login() not in str(raised.value)
    remove_settings(file)
    assert "theirs" in file.read_text()
