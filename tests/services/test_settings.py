"""The section `services` of params.yaml, and the servers' configuration and environment."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from fractal_model.common.errors import FractalError
from fractal_model.config.params import load_params
from fractal_model.config.services import ServicesConfig
from fractal_model.services.configuration import (
    RUN_VARIABLE,
    SERVICES,
    server_environment,
    shell_lines,
    supervisor_configuration,
)
from fractal_model.services.folder import ServicesFolder, write_private
from tests.support import REPOSITORY


@pytest.fixture
def folder(tmp_path, monkeypatch) -> ServicesFolder:
    project = tmp_path / "100% of a project; it's here"
    project.mkdir()
    return ServicesFolder(project / "params.yaml", project / "outputs")


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"prefect": 80}, "services.prefect: Input should be greater than or equal to 1024"),
        ({"ray": 5000}, "services.mlflow and services.ray are both 5000"),
        ({"mlfow": 5001}, "unknown key 'services.mlfow', did you mean 'mlflow'"),
        ({"ray_cpus": -1}, "services.ray_cpus"),
    ],
)
def test_a_mistake_is_named_on_one_line(tmp_path, section, expected):
    content = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    content["services"] = section
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(FractalError, match=expected) as raised:
        load_params(file)
    assert "\n" not in str(raised.value)


def test_settings_without_the_section_have_the_defaults(tmp_path):
    content = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    shipped = load_params(REPOSITORY / "params.yaml").services
    del content["services"]
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(content))
    assert load_params(file).services == shipped == ServicesConfig()


@pytest.fixture
def run(folder) -> Iterator[Path]:
    run = folder.create_run()
    yield run
    folder.remove_run(run)


def _programs(folder: ServicesFolder, config: ServicesConfig) -> configparser.RawConfigParser:
    run = folder.create_run()
    try:
        text = supervisor_configuration(config, folder, run)
    finally:
        folder.remove_run(run)
    parser = configparser.RawConfigParser()
    parser.read_string(text)
    return parser


def test_every_server_listens_on_loopback_alone(folder):
    parser = _programs(folder, ServicesConfig())
    commands = {name: parser[f"program:{name}"]["command"] for name in SERVICES}
    assert "--host 127.0.0.1 --port 4200" in commands["prefect"]
    assert "--host 127.0.0.1 --port 5000" in commands["mlflow"]
    assert "--node-ip-address 127.0.0.1" in commands["ray"]
    assert "--dashboard-host 127.0.0.1" in commands["ray"]
    assert "0.0.0.0" not in str(commands)


def test_the_configuration_does_not_contain_the_projects_path(folder):
    """Links replace a path with spaces, a percent sign, a semicolon and a quote."""
    parser = _programs(folder, ServicesConfig())
    for section in parser.sections():
        for key, value in parser[section].items():
            assert str(folder.project) not in value, (section, key)
    assert parser["supervisord"]["directory"].endswith("/state")


def test_sockets_have_short_paths_for_any_project_path(tmp_path):
    project = tmp_path / ("deep" * 40)
    project.mkdir()
    folder = ServicesFolder(project / "params.yaml", project / "outputs")
    run = folder.create_run()
    try:
        assert len(f"{run}/ray/session_2026-11-24_22-34-08_316306_9999999/sockets/raylet") < 107
        assert run.stat().st_mode & 0o777 == 0o700
        assert folder.run == run
    finally:
        folder.remove_run(run)
    assert not run.exists()
    assert folder.run is None


def test_ray_gets_the_number_of_cpus_in_the_settings(folder):
    for cpus, expected in ((0, False), (3, True)):
        command = _programs(folder, ServicesConfig(ray_cpus=cpus))["program:ray"]["command"]
        assert ("--num-cpus 3" in command) is expected
        assert ("--num-cpus" in command) is expected


def test_the_servers_ignore_addresses_of_other_servers(folder, run, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://elsewhere:4200/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:5000")
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    environment = server_environment(ServicesConfig(), folder, run)
    assert not any("elsewhere" in value for value in environment.values())
    assert environment[RUN_VARIABLE] == str(run)
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_USAGE_STATS_ENABLED"] == "0"
    assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert environment["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{folder.mlflow}/mlflow.db"
    assert folder.mlflow == folder.project / "outputs/mlflow"


def test_the_environment_can_choose_postgresql(folder, run, monkeypatch):
    databases = {
        "PREFECT_API_DATABASE_CONNECTION_URL": "postgresql+asyncpg://u:p@127.0.0.1/prefect",
        "MLFLOW_BACKEND_STORE_URI": "postgresql+psycopg2://u:p@127.0.0.1/mlflow",
    }
    for name, value in databases.items():
        monkeypatch.setenv(name, value)
    environment = server_environment(ServicesConfig(), folder, run)
    assert databases.items() <= environment.items()


def test_secrets_are_private_and_stay_the_same(folder):
    pairs = []
    for _ in range(2):
        folder.remove_run(folder.create_run())
        assert folder.token.stat().st_mode & 0o777 == 0o600
        assert folder.login_file.stat().st_mode & 0o777 == 0o600
        pairs.append((folder.token.read_text(), folder.login()))
    assert pairs[0] == pairs[1]
    token, login = pairs[0]
    assert re.fullmatch("[0-9a-f]{64}", token)
    assert re.fullmatch("fractal:[0-9a-f]{64}", login)
    assert token not in login
    assert folder.state.stat().st_mode & 0o777 == 0o700


def test_no_command_line_contains_a_secret(folder):
    parser = _programs(folder, ServicesConfig())
    text = str([dict(parser[section]) for section in parser.sections()])
    assert folder.login().partition(":")[2] not in text
    assert folder.token.read_text() not in text


@pytest.mark.parametrize(
    "content", ["", " \n", "fractal:", "fractal", "fractal:weak", 'me:a"b' * 9]
)
def test_an_empty_or_malformed_secret_is_refused(folder, content):
    for file in (folder.login_file, folder.token):
        folder.state.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        with pytest.raises(FractalError, match=rf"{file.name} holds no valid secret.*remove"):
            folder.create_run()
        assert file.read_text() == content
        file.unlink()


def test_a_secret_that_others_could_read_becomes_private(folder):
    folder.state.mkdir(parents=True)
    folder.login_file.write_text("me:0123456789abcdef\n")
    folder.login_file.chmod(0o644)
    assert folder.login() == "me:0123456789abcdef"
    assert folder.login_file.stat().st_mode & 0o777 == 0o600


def test_servers_have_the_login_and_their_own_address(folder, run, monkeypatch):
    """Variables of the shell for other servers do not change this."""
    monkeypatch.setenv("PREFECT_SERVER_UI_API_URL", "http://elsewhere:4200/api")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "of elsewhere")
    environment = server_environment(ServicesConfig(prefect=4300), folder, run)
    assert environment["PREFECT_SERVER_API_AUTH_STRING"] == folder.login()
    assert environment["PREFECT_API_AUTH_STRING"] == folder.login()
    assert environment["PREFECT_SERVER_UI_API_URL"] == "http://127.0.0.1:4300/api"
    origins = "http://127.0.0.1:4300,http://localhost:4300"
    assert environment["PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS"] == origins
    assert "MLFLOW_TRACKING_TOKEN" not in environment
    assert f"fractal:{environment['MLFLOW_TRACKING_PASSWORD']}" == folder.login()


def test_a_file_that_others_can_read_becomes_private(tmp_path):
    file = tmp_path / "prefect.toml"
    file.write_text("of an earlier version")
    file.chmod(0o644)
    write_private(file, "secret")
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["prefect.toml"]


def test_a_shell_can_source_the_environment(folder):
    folder.state.mkdir(parents=True)
    folder.environment.write_text(shell_lines(ServicesConfig(), folder))
    script = '. "$1"; printf "%s\\n" "$PREFECT_API_URL" "$RAY_AUTH_TOKEN_PATH" '
    script += '"$PREFECT_API_AUTH_STRING" "$MLFLOW_TRACKING_USERNAME:$MLFLOW_TRACKING_PASSWORD"'
    done = subprocess.run(
        ["sh", "-c", script, "sh", str(folder.environment)], capture_output=True, text=True
    )
    expected = ["http://127.0.0.1:4200/api", str(folder.token), *[folder.login()] * 2]
    assert done.stdout.splitlines() == expected


@pytest.mark.parametrize("hosts", ["", "example.org", "*"])
def test_the_environment_excludes_loopback_from_proxies(folder, hosts):
    folder.state.mkdir(parents=True)
    folder.environment.write_text(shell_lines(ServicesConfig(), folder))
    script = '. "$1"; printf "%s\\n" "$no_proxy" "$NO_PROXY"'
    printed = subprocess.run(
        ["sh", "-uc", script, "sh", str(folder.environment)],
        env={"NO_PROXY": hosts} if hosts else {},
        capture_output=True,
        text=True,
    ).stdout
    loopback = "127.0.0.1,localhost,::1"
    with_hosts = {"": loopback, "*": "*"}.get(hosts, f"{loopback},{hosts}")
    assert printed.splitlines() == [loopback, with_hosts]


def test_a_copy_of_the_project_does_not_own_its_run_folder(folder, tmp_path):
    run = folder.create_run()
    try:
        copy = tmp_path / "copy"
        shutil.copytree(folder.project, copy, symlinks=True)
        assert ServicesFolder(copy / "params.yaml", copy / "outputs").run is None
    finally:
        folder.remove_run(run)
