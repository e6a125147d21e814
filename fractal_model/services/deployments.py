"""Make Prefect's deployments, pause the work pool, and write prefect.toml with our server's
address.

Decided here: another process makes the deployments, because they need the flows, which this package
must not import. All other requests to Prefect use its HTTP interface.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.installation import FLOWS
from fractal_model.config.services import ServicesConfig
from fractal_model.services.configuration import WORK_POOL, client_environment
from fractal_model.services.folder import ServicesFolder, write_private
from fractal_model.services.health import ask_prefect

DEPLOY_SECONDS = 300
CHANGE_SECONDS = 30
"""Longest wait in seconds for Prefect to answer a request that changes something. A busy server
needs several seconds."""
DEPLOYED = "deployed "
"""Beginning of the line that `flows.deployments` prints for each deployment."""
HEADER = "# Written by `make up`, removed by `make down`.\n"


def deploy(config: ServicesConfig, folder: ServicesFolder, overrides: Sequence[str]) -> list[str]:
    """Make the work pool and the deployments of all sizes, and return the deployments' names.
    FractalError: a deployment cannot be made, or Prefect does not resume the work pool."""
    environment = {
        **os.environ,
        **client_environment(config, folder),
        # The user's own Prefect profile is neither read nor changed.
        "PREFECT_HOME": str(folder.state / "prefect"),
    }
    options = ["--params", str(folder.params_file), *(f"--set={text}" for text in overrides)]
    log = folder.log("deploy")
    with log.open("w") as output:
        done = subprocess.run(
            [sys.executable, "-m", f"{FLOWS}.deployments", *options],
            cwd=folder.project,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=DEPLOY_SECONDS,
            check=False,
        )
    if done.returncode:
        raise FractalError(f"the deployments could not be made: {last_log_lines(folder, 'deploy')}")
    try:
        set_paused(config, folder, False)  # the last `down` may have paused it
    except httpx.HTTPError as error:
        raise FractalError(
            f"Prefect did not resume the work pool: {one_line(error)}; run `make up` again"
        ) from error
    lines = log.read_text().splitlines()
    return [line.removeprefix(DEPLOYED) for line in lines if line.startswith(DEPLOYED)]


def set_paused(config: ServicesConfig, folder: ServicesFolder, paused: bool) -> None:
    """Pause or resume the work pool. httpx.HTTPError: Prefect does not answer, or refuses."""
    change = {"json": {"is_paused": paused}, "timeout": CHANGE_SECONDS}
    deadline = time.monotonic() + CHANGE_SECONDS
    while True:
        answer = ask_prefect(config, folder, "PATCH", f"/work_pools/{WORK_POOL}", **change)
        # Prefect answers so while its database is locked, for example on a busy machine.
        if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
            break
        time.sleep(1)
    answer.raise_for_status()


def wait_until_ended(config: ServicesConfig, folder: ServicesFolder, *, seconds: float) -> None:
    """Wait until Prefect has noticed that no flow run of the work pool runs, at most `seconds`. A
    run that Prefect believes to be running would block the next run of its deployment."""
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
    """Write prefect.toml with our server's address and login. FractalError: the folder has a
    prefect.toml that `make up` did not write."""
    file = folder.prefect_settings
    if file.exists() and not _is_generated(file):
        raise FractalError(
            f"{file} was not written by `make up` and may name another server: move it away, or "
            f'in its section [api] set url = "{config.prefect_api}" and auth_string to the content '
            f"of {folder.login_file}"
        )
    lines = [f'url = "{config.prefect_api}"', f'auth_string = "{folder.login()}"']
    # Our plugin (see pyproject.toml) makes Prefect's commands reach loopback without a proxy.
    lines = ["[api]", *lines, "[plugins]", "enabled = true"]
    write_private(file, HEADER + "".join(f"{line}\n" for line in lines))


def remove_settings(file: Path) -> None:
    """Remove prefect.toml if `write_settings` wrote it."""
    if file.exists() and _is_generated(file):
        file.unlink()


def _is_generated(file: Path) -> bool:
    return file.read_text().startswith(HEADER)


def last_log_lines(folder: ServicesFolder, service: str, lines: int = 4) -> str:
    """The last `lines` lines of a service's log, joined to one line, with the path of the whole
    log."""
    log = folder.log(service)
    text = log.read_text(errors="replace") if log.exists() else ""
    last = [line.strip() for line in text.splitlines() if line.strip()][-lines:]
    return f"{' | '.join(last) or 'its log is empty'} (whole log: {log})"
