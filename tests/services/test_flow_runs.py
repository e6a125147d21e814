"""Flow runs without a process are set to Crashed, on a real Prefect server."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import pytest
from prefect import flow, task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists
from prefect.settings import get_current_settings
from prefect.states import Cancelling, Pending, Running

from fractal_model.common.errors import FractalError
from fractal_model.config.services import ServicesConfig
from fractal_model.services.configuration import WORK_POOL
from fractal_model.services.flow_runs import DATABASE, crash_dead_runs
from fractal_model.services.folder import ServicesFolder
from fractal_model.services.processes import FLOW_RUN_VARIABLE
from tests.support.ports import free_ports


@flow(name="within-power-cut")
def _child() -> None: ...


@task
def _step() -> None: ...


class Runs:
    """Makes runs of deployments with one slot each, and reads their states."""

    def __init__(self, client: SyncPrefectClient) -> None:
        self._client = client
        self._flow = client.create_flow_from_name("power-cut")

    def start(self, *, pool: str = WORK_POOL, folder: str = "") -> UUID:
        """Make a run that a worker has taken and started; return its id."""
        name = uuid4().hex
        deployment = self._client.create_deployment(
            self._flow,
            name,
            work_pool_name=pool,
            concurrency_limit=1,
            pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": folder}}],
        )
        run = self._client.create_flow_run_from_deployment(deployment).id
        self._client.set_flow_run_state(run, Pending())
        self._client.set_flow_run_state(run, Running())
        assert (self.state(run), self.slots(run)) == ("Running", 1)
        return run

    def start_child(self, parent: UUID) -> UUID:
        """Make a run that another one has started in its own process; return its id."""
        step = self._client.create_task_run(_step, parent, uuid4().hex, state=Running())
        child = self._client.create_flow_run(_child, parent_task_run_id=step.id)
        self._client.set_flow_run_state(child.id, Running(), force=True)
        return child.id

    def cancel(self, run: UUID) -> None:
        self._client.set_flow_run_state(run, Cancelling())

    def delete(self, run: UUID) -> None:
        self._client.delete_flow_run(run)

    def state(self, run: UUID) -> str:
        return str(self._client.read_flow_run(run).state.name)

    def deployment(self, run: UUID) -> UUID:
        deployment = self._client.read_flow_run(run).deployment_id
        assert deployment is not None
        return deployment

    def slots(self, run: UUID) -> int:
        return self.slots_of(self.deployment(run))

    def slots_of(self, deployment: UUID) -> int:
        return self._client.read_deployment(deployment).global_concurrency_limit.active_slots


@pytest.fixture
def runs(prefect) -> Iterator[Runs]:
    with get_client(sync_client=True) as client:
        for pool in (WORK_POOL, "another"):
            with suppress(ObjectAlreadyExists):
                client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
        yield Runs(client)


@pytest.fixture
def config(prefect) -> ServicesConfig:
    return ServicesConfig(prefect=urlsplit(get_current_settings().api.url).port)


@pytest.fixture
def folder(tmp_path) -> ServicesFolder:
    return ServicesFolder(tmp_path / "params.yaml", tmp_path / "outputs")


@pytest.fixture
def start_process() -> Iterator:
    """A function that starts a process with a run's id in its environment."""
    started = []

    def start(run: UUID, api: str) -> None:
        code = "print(flush=True); import time; time.sleep(600)"
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env={FLOW_RUN_VARIABLE: str(run), "PREFECT_API_URL": api},
            stdout=subprocess.PIPE,
        )
        process.stdout.readline()
        started.append(process)

    yield start
    for process in started:
        process.kill()
        process.communicate()


def _later() -> datetime:
    return datetime.now(UTC) + timedelta(seconds=1)


def test_runs_without_a_process_are_crashed_and_others_are_not(runs, config, folder, start_process):
    dead, cancelled, copied, alive = (runs.start() for _ in range(4))
    elsewhere = runs.start(pool="another")
    child = runs.start_child(dead)
    runs.cancel(cancelled)
    start_process(alive, config.prefect_api)
    start_process(copied, "http://127.0.0.1:9/api")  # in the folder that ours is a copy of
    crash_dead_runs(config, folder, before=_later())
    for run in (dead, cancelled, copied):
        assert (runs.state(run), runs.slots(run)) == ("Crashed", 0)
    assert runs.state(child) == "Crashed"
    for run in (alive, elsewhere):
        assert (runs.state(run), runs.slots(run)) == ("Running", 1)


def test_the_slot_of_a_run_that_was_deleted_while_it_ran_is_freed(runs, config, folder):
    run = runs.start()
    deployment = runs.deployment(run)
    runs.delete(run)
    crash_dead_runs(config, folder, before=_later())
    assert runs.slots_of(deployment) == 0


def test_a_run_that_has_just_started_is_unchanged(runs, config, folder):
    before = datetime.now(UTC)
    run = runs.start()
    crash_dead_runs(config, folder, before=before)
    assert (runs.state(run), runs.slots(run)) == ("Running", 1)


@pytest.mark.parametrize("variable", DATABASE)
def test_in_a_shared_database_only_runs_of_our_folder_are_crashed(
    runs, config, folder, monkeypatch, variable
):
    monkeypatch.setenv(variable, "postgresql+asyncpg://127.0.0.1/prefect")
    ours = runs.start(folder=str(folder.project))
    theirs = [runs.start(folder=f"{folder.project}{suffix}") for suffix in ("-2", "/within")]
    crash_dead_runs(config, folder, before=_later())
    assert (runs.state(ours), runs.slots(ours)) == ("Crashed", 0)
    for run in theirs:
        assert (runs.state(run), runs.slots(run)) == ("Running", 1)


def test_a_prefect_that_does_not_answer_is_an_error(folder):
    config = ServicesConfig(prefect=free_ports(("prefect",))["prefect"])
    with pytest.raises(FractalError, match=r"^Prefect does not say which earlier .*again$"):
        crash_dead_runs(config, folder, before=_later())
