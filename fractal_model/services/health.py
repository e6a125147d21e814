"""Health checks of the servers. They send the same requests as the servers' clients."""

from collections.abc import Callable
from typing import Any

import httpx

from fractal_model.config.services import ServicesConfig
from fractal_model.services.configuration import WORK_POOL
from fractal_model.services.folder import ServicesFolder

TIMEOUT_SECONDS = 5.0


def health_checks(config: ServicesConfig, folder: ServicesFolder) -> dict[str, Callable[[], bool]]:
    """For each service name, a function that returns True if the service works now."""
    return {
        "prefect": lambda: _is_answering(f"{config.prefect_api}/health"),
        "mlflow": lambda: _is_answering(f"{config.mlflow_address}/health"),
        "ray": lambda: _is_ray_ready(config, folder),
        "worker": lambda: _is_worker_online(config, folder),
    }


def ask(
    method: str, address: str, *, timeout: float = TIMEOUT_SECONDS, **options: Any
) -> httpx.Response:
    """Send a request to this machine without a proxy. httpx.HTTPError: there is no answer."""
    return httpx.request(method, address, timeout=timeout, trust_env=False, **options)


def ask_prefect(
    config: ServicesConfig, folder: ServicesFolder, method: str, path: str, **options: Any
) -> httpx.Response:
    """Send a request with the login to Prefect's API. httpx.HTTPError: there is no answer."""
    user, _, password = folder.login().partition(":")
    return ask(method, f"{config.prefect_api}{path}", auth=(user, password), **options)


def _is_answering(address: str, headers: dict[str, str] | None = None) -> bool:
    try:
        return ask("GET", address, headers=headers).status_code == 200
    except httpx.HTTPError:
        return False


def _is_ray_ready(config: ServicesConfig, folder: ServicesFolder) -> bool:
    try:
        headers = {"Authorization": f"Bearer {folder.token.read_text().strip()}"}
    except OSError:
        return False
    return _is_answering(f"{config.ray_jobs}/api/jobs/", headers)


def _is_worker_online(config: ServicesConfig, folder: ServicesFolder) -> bool:
    path = f"/work_pools/{WORK_POOL}/workers/filter"
    try:
        answer = ask_prefect(config, folder, "POST", path, json={})
    except httpx.HTTPError:
        return False
    return answer.status_code == 200 and any(w["status"] == "ONLINE" for w in answer.json())
