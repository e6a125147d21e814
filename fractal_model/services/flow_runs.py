"""Flow runs that outlived their processes: Prefect's database believes that they are at work.

After a power cut a run stays Running for ever and keeps the only slot of its deployment, for which
the next run waits for ever. Decided here: a run is at work as long as a process of this machine has
its id in the environment; the others have crashed, and so have the runs within them; a deployment
has as many slots taken as runs of it are at work. Only our own server is asked, before our worker
starts, about runs of our work pool that began before; where several servers share a database, only
about runs of deployments that work in our folder.
"""

import os
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any

import httpx

from fractal_model.common.errors import FractalError, one_line
from fractal_model.config.services import ServicesConfig
from fractal_model.services.configuration import WORK_POOL
from fractal_model.services.deployments import CHANGE_SECONDS
from fractal_model.services.folder import ServicesFolder
from fractal_model.services.health import ask_prefect
from fractal_model.services.processes import FLOW_RUN, living

DATABASE = tuple(
    f"PREFECT_{part}_DATABASE_{name}"
    for part in ("API", "SERVER")
    for name in ("CONNECTION_URL", "HOST")
)
"""Variables that name a database that Prefect's servers of other folders may use too."""
AT_WORK = {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}
OF_OUR_POOL = {"work_pools": {"name": {"any_": [WORK_POOL]}}}
RUNS_AT_WORK = {**OF_OUR_POOL, "flow_runs": AT_WORK}
CRASHED = {
    "type": "CRASHED",
    "name": "Crashed",
    "message": "Its process ended with the servers, by a power cut or a kill: run the deployment "
    "again, which goes on where this run stopped.",
}
Send = Callable[[str, str, object], httpx.Response]
"""Sends a request to Prefect: method, path, content."""
PAGE, SORTS = 100, {"flow_runs": "ID_DESC", "deployments": "CREATED_DESC"}


def crash_dead_runs(
    config: ServicesConfig, folder: ServicesFolder, *, before: datetime
) -> list[str]:
    """Tell Prefect that runs whose process is gone have crashed, and free their deployments' slots;
    returns the runs' names. Left alone are runs that changed their state after `before`: a person's
    own worker may be starting them.

    FractalError: Prefect does not answer, or refuses.
    """
    try:
        return _crash_dead_runs(config, folder, before)
    except httpx.HTTPError as error:
        raise FractalError(
            f"Prefect does not say which flow runs are left of before: {one_line(error)}; `make "
            f"up` tries again"
        ) from error


def _crash_dead_runs(config: ServicesConfig, folder: ServicesFolder, before: datetime) -> list[str]:
    shared = any(os.environ.get(name) for name in DATABASE)
    alive = _ids_at_work(None if shared else config.prefect_api)
    send = partial(_send, config, folder)
    ours = [
        each["id"]
        for each in _all(send, "deployments", OF_OUR_POOL)
        if not shared or _works_in(each, folder)
    ]
    dead = [
        run
        for run in _all(send, "flow_runs", RUNS_AT_WORK)
        if run["id"] not in alive
        and (not shared or run["deployment_id"] in ours)
        and datetime.fromisoformat(run["state"]["timestamp"]) < before
    ]
    for run in dead:
        _crash(send, run["id"])
    _free_slots(send, ours)
    return [run["name"] for run in dead]


def _works_in(deployment: dict[str, Any], folder: ServicesFolder) -> bool:
    """True if the deployment's flow is loaded from the folder's project."""
    steps = deployment["pull_steps"] or []
    options = [each for step in steps for each in step.values() if isinstance(each, dict)]
    return any(each.get("directory") == str(folder.project) for each in options)


def _free_slots(send: Send, deployments: list[str]) -> None:
    """The server keeps the number of slots taken over its own end, but not by which runs."""
    deployed = _all(send, "deployments", OF_OUR_POOL)  # before the runs: one may begin meanwhile
    busy = Counter(run["deployment_id"] for run in _all(send, "flow_runs", RUNS_AT_WORK))
    for each in deployed:
        limit, taken = each["global_concurrency_limit"], busy[each["id"]]
        if each["id"] in deployments and limit and limit["active_slots"] > taken:
            send("PATCH", f"v2/concurrency_limits/{limit['id']}", {"active_slots": taken})


def _ids_at_work(api: str | None) -> set[str]:
    """Ids of the flow runs that have a process on this machine; where `api` is given, only those
    that use this server: a copy of its database has the same ids."""
    return {
        environment[FLOW_RUN]
        for _, environment in living()
        if FLOW_RUN in environment and api in (None, environment.get("PREFECT_API_URL"))
    }


def _crash(send: Send, run: str) -> None:
    """With all runs that it has started within itself."""
    # Forced: by its own rules Prefect turns a run that is being cancelled into nothing else.
    send("POST", f"flow_runs/{run}/set_state", {"state": CRASHED, "force": True})
    within = {**AT_WORK, "parent_flow_run_id": {"any_": [run]}}
    for child in _all(send, "flow_runs", {"flow_runs": within}):
        _crash(send, child["id"])


def _all(send: Send, kind: str, query: dict[str, Any]) -> list[dict[str, Any]]:
    """What Prefect's filter finds, all pages."""
    found: list[dict[str, Any]] = []
    while True:
        page = {**query, "limit": PAGE, "offset": len(found), "sort": SORTS[kind]}
        answer = send("POST", f"{kind}/filter", page).json()
        found += answer
        if len(answer) < PAGE:
            return found


def _send(
    config: ServicesConfig, folder: ServicesFolder, method: str, path: str, content: object
) -> httpx.Response:
    options = {"json": content, "timeout": CHANGE_SECONDS}
    return ask_prefect(config, folder, method, f"/{path}", **options).raise_for_status()
