"""Flow runs that Prefect believes to be running although their processes have ended.

After a power cut such a run would stay Running for ever and keep its deployment's only slot, so
that no other run could start. Decided here: a run is active if a process of this machine has the
run's id in the environment. All other runs have crashed, and so have their child runs. We ask only
our own server about earlier runs of our work pool, before our worker starts. If several servers
share a database, we change only runs and slots of deployments that work in our folder.
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
from fractal_model.services.processes import FLOW_RUN_VARIABLE, running_processes

DATABASE = tuple(
    f"PREFECT_{part}_DATABASE_{name}"
    for part in ("API", "SERVER")
    for name in ("CONNECTION_URL", "HOST")
)
"""Environment variables that choose Prefect's database. If one is set, the Prefect servers of other
projects may use the same database."""
IS_ACTIVE = {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}
IN_OUR_POOL = {"work_pools": {"name": {"any_": [WORK_POOL]}}}
ACTIVE_RUNS = {**IN_OUR_POOL, "flow_runs": IS_ACTIVE}
CRASHED = {
    "type": "CRASHED",
    "name": "Crashed",
    "message": "Its process ended with the servers, by a power cut or a kill: run the deployment "
    "again, it continues where this run stopped.",
}
Send = Callable[[str, str, object], httpx.Response]
"""Function that sends a request to Prefect. Its arguments are the method, the path and the body."""
PAGE, SORTS = 100, {"flow_runs": "ID_DESC", "deployments": "CREATED_DESC"}


def crash_dead_runs(
    config: ServicesConfig, folder: ServicesFolder, *, before: datetime
) -> list[str]:
    """Tell Prefect that runs without a process have crashed, free their deployments' slots, and
    return the names of the runs. A run whose state changed after `before` is left alone, as another
    worker may be starting it. FractalError: Prefect does not answer, or refuses."""
    try:
        return _crash_dead_runs(config, folder, before)
    except httpx.HTTPError as error:
        raise FractalError(
            f"Prefect does not say which earlier flow runs are active: {one_line(error)}; run "
            f"`make up` again"
        ) from error


def _crash_dead_runs(config: ServicesConfig, folder: ServicesFolder, before: datetime) -> list[str]:
    shared = any(os.environ.get(name) for name in DATABASE)
    active = _active_run_ids(None if shared else config.prefect_api)
    send = partial(_send, config, folder)
    ours = [
        deployment["id"]
        for deployment in _read_all(send, "deployments", IN_OUR_POOL)
        if not shared or _works_in(deployment, folder)
    ]
    dead = [
        run
        for run in _read_all(send, "flow_runs", ACTIVE_RUNS)
        if run["id"] not in active
        and (not shared or run["deployment_id"] in ours)
        and datetime.fromisoformat(run["state"]["timestamp"]) < before
    ]
    for run in dead:
        _set_crashed(send, run["id"])
    _free_slots(send, ours)
    return [run["name"] for run in dead]


def _works_in(deployment: dict[str, Any], folder: ServicesFolder) -> bool:
    """True if the deployment takes its flow from the project of `folder`."""
    steps = deployment["pull_steps"] or []
    inputs = [values for step in steps for values in step.values() if isinstance(values, dict)]
    return any(values.get("directory") == str(folder.project) for values in inputs)


def _free_slots(send: Send, deployments: list[str]) -> None:
    """Free the slots of `deployments` (their ids) that no active run uses. After a restart the
    server knows how many slots are taken, but not by which runs."""
    # Deployments are read before the runs, because a run may begin meanwhile.
    in_pool = _read_all(send, "deployments", IN_OUR_POOL)
    counts = Counter(run["deployment_id"] for run in _read_all(send, "flow_runs", ACTIVE_RUNS))
    for deployment in in_pool:
        limit, taken = deployment["global_concurrency_limit"], counts[deployment["id"]]
        if deployment["id"] in deployments and limit and limit["active_slots"] > taken:
            send("PATCH", f"v2/concurrency_limits/{limit['id']}", {"active_slots": taken})


def _active_run_ids(api: str | None) -> set[str]:
    """Ids of the flow runs that have a process on this machine. If the address `api` is given, only
    processes that use the server at `api` count: a server with a copy of our database has runs with
    the same ids."""
    return {
        environment[FLOW_RUN_VARIABLE]
        for _, environment in running_processes()
        if FLOW_RUN_VARIABLE in environment and api in (None, environment.get("PREFECT_API_URL"))
    }


def _set_crashed(send: Send, run: str) -> None:
    """Set the state of a run and of its active child runs to Crashed."""
    # Without force Prefect refuses to change the state of a run that is being cancelled.
    send("POST", f"flow_runs/{run}/set_state", {"state": CRASHED, "force": True})
    children = {**IS_ACTIVE, "parent_flow_run_id": {"any_": [run]}}
    for child in _read_all(send, "flow_runs", {"flow_runs": children}):
        _set_crashed(send, child["id"])


def _read_all(send: Send, kind: str, query: dict[str, Any]) -> list[dict[str, Any]]:
    """Read all `flow_runs` or `deployments` (the `kind`) that match `query`, page by page."""
    items: list[dict[str, Any]] = []
    while True:
        page = {**query, "limit": PAGE, "offset": len(items), "sort": SORTS[kind]}
        answer = send("POST", f"{kind}/filter", page).json()
        items += answer
        if len(answer) < PAGE:
            return items


def _send(
    config: ServicesConfig, folder: ServicesFolder, method: str, path: str, body: object
) -> httpx.Response:
    options = {"json": body, "timeout": CHANGE_SECONDS}
    return ask_prefect(config, folder, method, f"/{path}", **options).raise_for_status()
