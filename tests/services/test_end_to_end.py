"""The real servers, in a new project folder with a space in its path.

Another Ray runs beside them, which must stay unchanged.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from fractal_model.data.manifest import read_manifest
from fractal_model.services import processes
from tests.support import mini_imagenet
from tests.support.live_project import Project, environment, live_project
from tests.support.params import small_params
from tests.support.ports import free_ports

SLOW = """
import time
from prefect import flow

@flow
def slow():
    time.sleep(600)
"""
PROBE = """
import os
from pathlib import Path
from prefect import flow
from ray.job_submission import JobSubmissionClient, JobStatus
import time

@flow
def probe():
    client = JobSubmissionClient(os.environ["RAY_ADDRESS"])
    code = "import mlflow, ray; ray.init(); "
    code += "print('workers on', ray.nodes()[0]['NodeManagerAddress']); "
    code += "print('experiments', [e.name for e in mlflow.search_experiments()])"
    variables = {"MLFLOW_TRACKING_URI": os.environ["MLFLOW_TRACKING_URI"]}
    job = client.submit_job(
        entrypoint=f'python -c "{code}"', runtime_env={"env_vars": variables}
    )
    while client.get_job_status(job) not in (JobStatus.SUCCEEDED, JobStatus.FAILED):
        time.sleep(0.5)
    Path("probe.txt").write_text(client.get_job_logs(job) + os.environ["MLFLOW_TRACKING_URI"])
"""

pytestmark = [pytest.mark.services, pytest.mark.faults]


WORKER_LOG = "outputs/services/worker.log"


@pytest.fixture(scope="module")
def other_ray(tmp_path_factory) -> Iterator[psutil.Process]:
    """The process of another Ray head, which was started before the servers."""
    ports = free_ports()
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += ["--port", str(ports["ray"]), "--dashboard-port", str(ports["ray_dashboard"])]
    command += ["--ray-client-server-port", str(ports["ray_client"])]
    command += ["--node-ip-address", "127.0.0.1", "--num-cpus", "1"]
    command += ["--min-worker-port", "0", "--max-worker-port", "0"]
    settings = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    settings["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"
    started = subprocess.Popen(
        command,
        env=environment(**settings),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    process = psutil.Process(started.pid)
    address = f"http://127.0.0.1:{ports['ray_dashboard']}/api/version"
    try:
        _wait(lambda: _answers(address))
        yield process
    finally:
        processes.end_processes([process, *process.children(recursive=True)], grace_seconds=15)


def _answers(address: str) -> bool:
    try:
        # 401 means that it asks for a token, which we do not have.
        return httpx.get(address, timeout=5, trust_env=False).status_code in (200, 401)
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def project(tmp_path_factory, other_ray) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("services") / "a project"
    with live_project(folder, small_params()) as project:
        yield project


def _run_folder(project: Project) -> str:
    return str((project.folder / "outputs/services/run").resolve())


def _flow_runs(project: Project) -> dict[str, str]:
    """The state of each flow's run, from Prefect's database."""
    query = "SELECT flow.name, flow_run.state_name FROM flow_run JOIN flow ON flow.id = flow_id"
    file = project.folder / "outputs/services/prefect/prefect.db"
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
        return dict(database.execute(query).fetchall())


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_up_prints_the_address_of_every_server(project):
    for name in ("prefect", "mlflow", "ray_dashboard"):
        assert f"http://127.0.0.1:{project.ports[name]}" in project.start_output
    assert "deployments: train-fractal (" in project.start_output
    assert "prefect deployment run train-fractal/digits --watch" in project.start_output
    status = project.fractal("services", "status")
    assert status.count("healthy") == 4, status


def test_all_servers_listen_on_loopback_alone(project):
    ours = {process.pid for process in processes.find_processes(_run_folder(project))}
    lines = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True).stdout.splitlines()
    addresses = [x.split()[3] for x in lines if any(f"pid={pid}," in x for pid in ours)]
    hosts = {address.rpartition(":")[0] for address in addresses}
    assert hosts <= {"127.0.0.1", "[::ffff:127.0.0.1]"}
    listening = {int(address.rpartition(":")[2]) for address in addresses}
    assert set(project.ports.values()) <= listening


def test_ray_asks_for_the_token(project):
    address = f"http://127.0.0.1:{project.ports['ray_dashboard']}/api/jobs/"
    token = (project.folder / "outputs/services/ray-token").read_text()
    with httpx.Client(trust_env=False) as client:
        assert client.get(address).status_code == 401
        with_token = client.get(address, headers={"Authorization": f"Bearer {token}"})
    assert with_token.status_code == 200


def test_a_flow_run_reaches_ray_and_mlflow(project):
    """The flow's environment comes from the worker, and the login of a job from Ray's."""
    (project.folder / "probe.py").write_text(PROBE)
    project.prefect("--no-prompt", "deploy", "probe.py:probe", "-n", "probe", "-p", "fractal")
    output = project.prefect("deployment", "run", "probe/probe", "--watch")
    assert "Completed" in output
    text = (project.folder / "probe.txt").read_text()
    assert "workers on 127.0.0.1" in text
    assert "experiments ['Default']" in text
    assert text.endswith(f"http://127.0.0.1:{project.ports['mlflow']}")


def test_the_training_deployment_registers_a_version(project):
    """The commands are a user's. The version is then found without the server too."""
    project.fractal("data", "prepare", "digits")
    output = project.prefect("deployment", "run", "train-fractal/digits", "--watch")
    assert "Completed" in output
    code = "from pathlib import Path; from fractal_model.tracking import registry, store; "
    code += "store.connect(Path('outputs').resolve()); print(registry.resolve('digits').version)"
    assert project.run(sys.executable, "-c", code).strip() == "1"


def test_a_registered_data_set_is_prepared_by_a_job_of_the_cluster(project):
    """Only the next `make up` makes its deployment; until then any other one can prepare it."""
    mini_imagenet.write_tree(project.folder / "raw")
    project.fractal("data", "register", "raw", "--resolution", "16")
    words = ("prepare-data/digits", "--param", "dataset=imagenet16", "--watch")
    assert "Completed" in project.prefect("deployment", "run", *words)
    data = project.folder / "data"
    assert read_manifest(data / "imagenet16").splits["train"].images == 27
    assert (data / "imagenet16-reference.npz").is_file()
    assert (data / "imagenet16-report/metrics.json").is_file()
    assert "entrypoint for job prepare-imagenet16-" in (project.folder / WORKER_LOG).read_text()


def _start_training(project: Project, **parameters: object) -> str:
    """Start a run of the deployment train-fractal/digits; return its id."""
    words = [w for k, v in parameters.items() for w in ("--param", f"{k}={v}")]
    output = project.prefect("deployment", "run", "train-fractal/digits", *words)
    return re.search(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", output).group()


def _find_processes(project: Project, *words: str) -> list[psutil.Process]:
    """The servers' processes whose command line has all of these words."""
    matches = []
    for process in processes.find_processes(_run_folder(project)):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended in the meantime
            line = " ".join(process.cmdline())
            matches += [process] if all(word in line for word in words) else []
    return matches


def _training_workers(project: Project) -> list[psutil.Process]:
    return _find_processes(project, "RayTrainWorker")


def _state(project: Project, run: str) -> str:
    query = f"SELECT state_name FROM flow_run WHERE id = '{run}'"
    file = project.folder / "outputs/services/prefect/prefect.db"
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
        return database.execute(query).fetchone()[0]


def test_a_cancelled_flow_frees_its_workers_and_leaves_the_cluster(project):
    run = _start_training(project, epochs=200)
    _wait(lambda: len(_training_workers(project)) == 2)
    project.prefect("flow-run", "cancel", run)
    cancelled = time.monotonic()
    _wait(lambda: not _training_workers(project))
    assert time.monotonic() - cancelled < 30
    _wait(lambda: _state(project, run) == "Cancelled")
    assert project.fractal("services", "status").count("healthy") == 4


def _kill_flow(project: Project, run: str) -> None:
    (flow,) = _find_processes(project, "prefect", "engine")
    flow.kill()
    _wait(lambda: _state(project, run) == "Crashed")


def test_the_next_flow_run_joins_the_job_of_a_killed_flow(project):
    """A killed flow cannot stop its job."""
    first = _start_training(project, epochs=30)
    _wait(lambda: len(_training_workers(project)) == 2)
    workers = {process.pid for process in _training_workers(project)}
    _kill_flow(project, first)
    assert {process.pid for process in _training_workers(project)} == workers
    second = _start_training(project, epochs=30)  # the same settings, so it joins the job
    _wait(lambda: _state(project, second) == "Running")
    time.sleep(5)
    assert {process.pid for process in _training_workers(project)} == workers
    project.prefect("flow-run", "cancel", second)
    _wait(lambda: not _training_workers(project))


def test_a_flow_run_with_other_settings_stops_the_job_of_a_killed_flow(project):
    first = _start_training(project, epochs=300)
    _wait(lambda: len(_training_workers(project)) == 2)
    old_workers = {process.pid for process in _training_workers(project)}
    _kill_flow(project, first)
    second = _start_training(project, epochs=301)
    _wait(lambda: _state(project, second) == "Running")
    _wait(lambda: "was left behind by" in (project.folder / WORKER_LOG).read_text())
    _wait(
        lambda: (
            len(_training_workers(project)) == 2
            and not old_workers & {process.pid for process in _training_workers(project)}
        )
    )
    project.prefect("flow-run", "cancel", second)
    _wait(lambda: not _training_workers(project))


def test_down_stops_all_our_processes_and_no_others(project, other_ray):
    run = _run_folder(project)
    others = other_ray.children(recursive=True)
    (project.folder / "slow.py").write_text(SLOW)
    project.prefect("--no-prompt", "deploy", "slow.py:slow", "-n", "slow", "-p", "fractal")
    project.prefect("deployment", "run", "slow/slow")
    _wait(lambda: _flow_runs(project)["slow"] == "Running")
    assert processes.find_processes(run)
    output = project.fractal("services", "down")
    assert output.startswith("stopped: ")
    assert _flow_runs(project)["slow"] == "Crashed"
    assert processes.find_processes(run) == []
    assert not Path(run).exists()
    assert not (project.folder / "prefect.toml").exists()
    assert other_ray.is_running()
    assert {"gcs_server", "raylet"} <= {p.name() for p in others if p.is_running()}
    assert not project.fractal("services", "down").startswith("stopped: ")
