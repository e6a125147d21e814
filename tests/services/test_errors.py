"""What goes wrong with the servers is said on one line; nothing is left running."""

from __future__ import annotations

import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import psutil
import pytest
import yaml

from fractal_model.common.errors import FractalError
from fractal_model.common.locks import only_one
from fractal_model.config.params import load_params
from fractal_model.config.services import ServicesConfig
from fractal_model.services import control, processes
from fractal_model.services.configuration import MARK
from fractal_model.services.control import Services
from fractal_model.services.deployments import remove_settings, write_settings
from fractal_model.services.folder import ServicesFolder
from tests.support.params import small_params
from tests.support.ports import free_ports


@pytest.fixture
def services(tmp_path) -> Services:
    """A project whose servers have free ports of their own."""
    project = tmp_path / "a project"
    (project / "flows").mkdir(parents=True)
    (project / "flows" / "train.py").touch()
    content = small_params()
    content["services"] = {**free_ports(), "startup_seconds": 3}
    file = project / "params.yaml"
    file.write_text(yaml.safe_dump(content))
    params = load_params(file)
    return Services(file, params.services, params.paths.outputs)


def _stand_in(monkeypatch, code: str) -> None:
    """A small program instead of the servers, under a real supervisord."""
    whole = control.supervisor_configuration

    def configuration(config, folder, run):
        script = run / "server.py"
        script.write_text(code)
        lines = whole(config, folder, run).splitlines()
        command = f"command={Path(sys.executable).resolve()} {script}"
        return "\n".join(command if x.startswith("command=") else x for x in lines)

    monkeypatch.setattr(control, "supervisor_configuration", configuration)


@pytest.mark.parametrize("key", ["prefect", "mlflow", "ray", "ray_client", "ray_dashboard"])
def test_a_taken_port(services, key):
    port = services.config.ports()[key]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(FractalError) as found:
            services.up(print)
    line = str(found.value)
    assert f"port {port} of 127.0.0.1 is taken by process" in line
    assert f"services.{key} in params.yaml" in line
    assert services.folder.run is None


def test_a_server_that_dies_at_its_start(services, monkeypatch):
    _stand_in(monkeypatch, "print('first'); print('the disk is on fire'); raise SystemExit(3)")
    with pytest.raises(FractalError) as found:
        services.up(print)
    line = str(found.value)
    assert line.startswith("prefect ended at its start: first | the disk is on fire (all of it: ")
    assert str(services.folder.log("prefect")) in line
    assert "\n" not in line
    assert services.folder.run is None


def test_a_server_that_never_answers(services, monkeypatch):
    _stand_in(monkeypatch, "import time; print('waiting', flush=True); time.sleep(600)")
    with pytest.raises(FractalError, match=r"prefect does not answer after 3 s .*: waiting"):
        services.up(print)
    assert services.folder.run is None
    assert services.status() == []


def test_they_run_already(services, monkeypatch):
    _stand_in(monkeypatch, "import time; time.sleep(600)")
    monkeypatch.setattr(control, "deploy", lambda *_: ["train-fractal/digits"])
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
    assert processes.marked(str(run)) == []
    assert not services.folder.prefect_settings.exists()
    assert services.down() == []


def test_what_a_killed_supervisord_left_is_stopped(services, monkeypatch):
    _stand_in(monkeypatch, "import time; time.sleep(600)")
    monkeypatch.setattr(control, "deploy", lambda *_: [])
    services._checks = dict.fromkeys(services._checks, lambda: True)
    services.up(print)
    run = services.folder.run
    try:
        daemon = psutil.Process(int((run / "supervisord.pid").read_text()))
        daemon.kill()
        daemon.wait(10)
        assert len(processes.marked(str(run))) == 4
    finally:
        services.down()
    assert processes.marked(str(run)) == []


def test_only_marked_processes_are_ended(tmp_path):
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    ours, other = str(tmp_path / "ours"), str(tmp_path / "other")
    running = [subprocess.Popen(sleep, env={MARK: mark}) for mark in (ours, other)]
    try:
        found = processes.marked(ours)
        assert [p.pid for p in found] == [running[0].pid]
        processes.end(found, grace_seconds=5)
        assert processes.marked(ours) == []
        assert running[1].poll() is None
    finally:
        for process in running:
            process.kill()
            process.wait()


def test_another_folder_than_the_projects(services):
    (services.folder.project / "flows").rename(services.folder.project / "other")
    with pytest.raises(FractalError, match="has no flows: run from the project's folder"):
        services.up(print)


def test_somebody_else_starts_or_stops_them(services):
    with (
        only_one(services.folder.state / "starting.lock"),
        pytest.raises(FractalError, match="another process is at work here"),
    ):
        services.up(print)


def test_prefect_refuses_the_deployments(services):
    """Nothing listens at its address."""
    services.folder.state.mkdir(parents=True)
    with pytest.raises(FractalError) as raised:
        control.deploy(services.config, services.folder)
    line = str(raised.value)
    assert line.startswith("the deployments could not be made: ")
    assert f"error: Prefect's server {services.config.prefect_api} does not take" in line
    assert "\n" not in line


def test_prefect_does_not_let_the_worker_in(services, monkeypatch):
    """The deployments are made, and then it is gone."""
    services.folder.state.mkdir(parents=True)
    monkeypatch.setattr(sys, "executable", "true")
    with pytest.raises(FractalError, match=r"^Prefect does not let the worker take runs: .*again$"):
        control.deploy(services.config, services.folder)


def test_the_prefect_toml_keeps_prefects_commands_off_a_proxy(tmp_path):
    folder = ServicesFolder(tmp_path / "params.yaml", tmp_path / "outputs")
    write_settings(ServicesConfig(), folder)
    content = tomllib.loads(folder.prefect_settings.read_text())
    assert content["plugins"] == {"enabled": True}
    assert content["api"]["url"] == "http://127.0.0.1:4200/api"


def test_a_prefect_toml_of_the_persons_own_is_left_alone(tmp_path):
    folder = ServicesFolder(tmp_path / "params.yaml", tmp_path / "outputs")
    file = folder.prefect_settings
    file.write_text("[api]\nurl = 'http://theirs/api'\n")
    with pytest.raises(FractalError, match=r"not of `make up`.*127.0.0.1:4200/api.*login") as found:
        write_settings(ServicesConfig(), folder)
    assert folder.login() not in str(found.value)
    remove_settings(file)
    assert "theirs" in file.read_text()
