"""What Prefect has to know before its worker starts: the work pool and the deployments."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx

from fractal_model.common.errors import FractalError
from fractal_model.config.services import ServicesConfig
from fractal_model.services.configuration import WORK_POOL, client_environment
from fractal_model.services.folder import ServicesFolder

DEPLOY_SECONDS = 300


def deploy(config: ServicesConfig, folder: ServicesFolder) -> list[str]:
    """Make the work pool where there is none, and deploy all of prefect.yaml; returns the names.

    FractalError: Prefect refuses, with its last words.
    """
    environment = {
        **os.environ,
        **client_environment(config, folder.token),
        # The person's own profile is neither read nor written.
        "PREFECT_HOME": str(folder.state / "prefect"),
        "PREFECT_CLI_COLORS": "false",
        "COLUMNS": "200",
    }
    pool = ["work-pool", "create", WORK_POOL, "--type", "process", "--overwrite"]
    log = folder.log("deploy")
    with log.open("w") as output:
        for command in (pool, ["--no-prompt", "deploy", "--all"]):
            done = subprocess.run(
                [sys.executable, "-m", "prefect", *command],
                cwd=folder.project,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=DEPLOY_SECONDS,
                check=False,
            )
            if done.returncode:
                raise FractalError(
                    f"`prefect {' '.join(command)}` failed: {log_end(folder, 'deploy')}"
                )
    return [line.split("'")[1] for line in log.read_text().splitlines() if "successfully" in line]


def pause(config: ServicesConfig) -> None:
    """The worker takes nothing new; the next `deploy` ends it."""
    with contextlib.suppress(httpx.HTTPError), httpx.Client(trust_env=False) as client:
        client.patch(f"{config.prefect_api}/work_pools/{WORK_POOL}", json={"is_paused": True})


def wait_until_ended(config: ServicesConfig, *, seconds: float) -> None:
    """Until Prefect knows that no flow run of the work pool runs, at most so long.

    One that it believed to be running would hold up the next run of its deployment.
    """
    query = {
        "work_pools": {"name": {"any_": [WORK_POOL]}},
        "flow_runs": {"state": {"type": {"any_": ["RUNNING", "CANCELLING"]}}},
    }
    deadline = time.monotonic() + seconds
    with contextlib.suppress(httpx.HTTPError), httpx.Client(trust_env=False) as client:
        while time.monotonic() < deadline:
            found = client.post(f"{config.prefect_api}/flow_runs/filter", json=query)
            if found.status_code != 200 or not found.json():
                return
            time.sleep(0.5)


def log_end(folder: ServicesFolder, service: str, lines: int = 4) -> str:
    """The last words of a service on one line, and where the rest is."""
    log = folder.log(service)
    text = log.read_text(errors="replace") if log.exists() else ""
    words = [line.strip() for line in text.splitlines() if line.strip()][-lines:]
    return f"{' | '.join(words) or 'it said nothing'} (all of it: {log})"


OURS = "# Written by `make up`, removed by `make down`.\n"


def write_settings(file: Path, config: ServicesConfig) -> None:
    """Point Prefect at our server. FractalError: the person has a file of their own."""
    if file.exists() and not _is_ours(file):
        raise FractalError(
            f"{file} is not of `make up` and may name another server: move it away, or set "
            f'url = "{config.prefect_api}" under [api] there'
        )
    file.write_text(f'{OURS}[api]\nurl = "{config.prefect_api}"\n')


def remove_settings(file: Path) -> None:
    """Remove it where it is ours."""
    if file.exists() and _is_ours(file):
        file.unlink()


def _is_ours(file: Path) -> bool:
    return file.read_text().startswith(OURS)
