"""Identifies the flow run that owns a Ray job, and finds out if the owner of a job has ended."""

from pathlib import Path
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.runtime import flow_run
from prefect.settings import get_current_settings

from fractal_model.common.locks import is_held
from fractal_model.training.ray_jobs.owner import Owner

_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def this_owner() -> Owner:
    """Owner of the Ray jobs that this process starts: the current flow run and the process."""
    return Owner.current(flow_run=flow_run.id or "", prefect=_server())


def is_over(owner: Owner, lock: Path | None) -> bool:
    """True if nobody follows the owner's job any more: the owner's flow run or process has ended,
    and no other process holds `lock`, the training's lock file (None: this process holds it). False
    in doubt: the Prefect server does not answer, or the flow run is on another server."""
    if lock is not None and is_held(lock):
        return False
    return owner.is_process_dead() or (owner.flow_run != "" and _flow_is_over(owner))


def _flow_is_over(owner: Owner) -> bool:
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(UUID(owner.flow_run)).state
    except ObjectNotFound:
        return owner.prefect == _server()  # The run was deleted on its own server.
    except (httpx.HTTPError, PrefectException, RuntimeError, ValueError):
        return False
    return state is not None and state.is_final()


def _server() -> str:
    """Address of the Prefect server in use, with this machine's name if the server is local."""
    settings = get_current_settings()
    address = settings.api.url or str(settings.home)
    local = settings.api.url is None or any(f"//{host}" in address for host in _LOOPBACK)
    return f"{address} of {Owner.current().host}" if local else address
