"""Prefect's side of the servers: its deployments, its pause, and the file that names its server.

Decided here: the flows make their own deployments, in a process of their own, since this room
knows no flow; what else Prefect is asked for goes over its HTTP interface.
"""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx

from fractal_model.common.errors import FractalError, one_line
from fractal_model.config.services import ServicesConfig
from fractal_model.services.configuration import WORK_POOL, client_environment
from fractal_model.services.folder import ServicesFolder, write_private
from fractal_model.services.health import ask_prefect

DEPLOY_SECONDS = 300
CHANGE_SECONDS = 30
"""For one change; a busy server takes seconds."""
DEPLOYED = "deployed "
"""How `flows.deployments` begins the line of a deployment that it made."""
OURS = "# Written by `make up`, removed by `make down`.\n"


def deploy(config: ServicesConfig, folder: ServicesFolder) -> list[str]:
    """Make the work pool and the deployments of the settings; returns the deployments' names.

    FractalError: Prefect refuses, with its last words.
    """
    environment = {
        **os.environ,
        **client_environment(config, folder),
        # The person's own profile is neither read nor written.
        "PREFECT_HOME": str(folder.state / "prefect"),
    }
    log = folder.log("deploy")
    with log.open("w") as output:
        done = subprocess.run(
            [sys.executable, "-m", "flows.deployments", "--params", str(folder.params_file)],
            cwd=folder.project,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=DEPLOY_SECONDS,
            check=False,
        )
    if done.returncode:
        raise FractalError(f"the deployments could not be made: {log_end(folder, 'deploy')}")
    try:
        set_paused(config, folder, False)  # the last `down` may have set it
    except httpx.HTTPError as error:
        raise FractalError(
            f"Prefect does not let the worker take runs: {one_line(error)}; `make up` tries again"
        ) from error
    lines = log.read_text().splitlines()
    return [line.removeprefix(DEPLOYED) for line in lines if line.startswith(DEPLOYED)]


def set_paused(config: ServicesConfig, folder: ServicesFolder, paused: bool) -> None:
    """Say whether the worker may take new runs; the next `deploy` lets it in any case.

    httpx.HTTPError: Prefect does not answer, or refuses.
    """
    change = {"json": {"is_paused": paused}, "timeout": CHANGE_SECONDS}
    ask_prefect(config, folder, "PATCH", f"/work_pools/{WORK_POOL}", **change).raise_for_status()


def wait_until_ended(config: ServicesConfig, folder: ServicesFolder, *, seconds: float) -> None:
    """Wait until Prefect knows that no flow run of the work pool runs, at most so long.

    One that it believed to be running would hold up the next run of its deployment.
    """
    query = {
        "work_pools": {"name": {"any_": [WORK_POOL]}},
        "flow_runs": {"state": {"type": {"any_": ["RUNNING", "CANCELLING"]}}},
    }
    deadline = time.monotonic() + seconds
    with contextlib.suppress(httpx.HTTPError):
        while time.monotonic() < deadline:
            answer = ask_prefect(config, folder, "POST", "/flow_runs/filter", json=query)
            if answer.status_code != 200 or not answer.json():
                return
            time.sleep(0.5)


def write_settings(config: ServicesConfig, folder: ServicesFolder) -> None:
    """Point Prefect at our server. FractalError: the person has a file of their own."""
    file = folder.prefect_settings
    if file.exists() and not _is_ours(file):
        raise FractalError(
            f"{file} is not of `make up` and may name another server: move it away, or set "
            f'url = "{config.prefect_api}" and auth_string = "…" under [api] there, as in '
            f"{folder.login_file}"
        )
    lines = [f'url = "{config.prefect_api}"', f'auth_string = "{folder.login()}"']
    # The plugin is ours (pyproject.toml): it keeps Prefect's own commands off the shell's proxy.
    lines = ["[api]", *lines, "[plugins]", "enabled = true"]
    write_private(file, OURS + "".join(f"{line}\n" for line in lines))


def remove_settings(file: Path) -> None:
    """Remove it where it is ours."""
    if file.exists() and _is_ours(file):
        file.unlink()


def _is_ours(file: Path) -> bool:
    return file.read_text().startswith(OURS)


def log_end(folder: ServicesFolder, service: str, lines: int = 4) -> str:
    """The last words of a service on one line, and where the rest is."""
    log = folder.log(service)
    text = log.read_text(errors="replace") if log.exists() else ""
    words = [line.strip() for line in text.splitlines() if line.strip()][-lines:]
    return f"{' | '.join(words) or 'it said nothing'} (all of it: {log})"
