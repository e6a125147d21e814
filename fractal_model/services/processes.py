"""Find and end the processes of the servers, and check that ports are free."""

import contextlib
import os
import socket
from collections.abc import Iterator

import psutil

from fractal_model.common.errors import FractalError
from fractal_model.config.services import ServicesConfig
from fractal_model.services.configuration import RUN_VARIABLE

FLOW_RUN_VARIABLE = "PREFECT__FLOW_RUN_ID"
"""Environment variable with a flow run's id, in the processes of the run."""
SERVICE_VARIABLE = "SUPERVISOR_PROCESS_NAME"
"""Environment variable in which supervisord names a service. All processes of the service have
it."""


def running_processes() -> Iterator[tuple[psutil.Process, dict[str, str]]]:
    """Yield each running process that this user may inspect, with its environment variables."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            environment = process.environ()
            if process.status() != psutil.STATUS_ZOMBIE:
                yield process, environment


def find_processes(run: str, variable: str = RUN_VARIABLE) -> list[psutil.Process]:
    """Find the processes that belong to the run folder `run` and have the environment variable
    `variable`. The calling process itself is left out."""
    return [
        process
        for process, environment in running_processes()
        if environment.get(RUN_VARIABLE) == run
        and variable in environment
        and process.pid != os.getpid()
    ]


def services_and_flow_runs(run: str) -> dict[str, int]:
    """Find the process ids of the services and flow runs of a run folder, even without supervisord.
    The keys are the services' names and `flow run <id>`. If a service or flow run has several
    processes, the value is the id of the oldest."""
    pids: dict[str, int] = {}
    ours = [
        (process, environment)
        for process, environment in running_processes()
        if environment.get(RUN_VARIABLE) == run and SERVICE_VARIABLE in environment
    ]
    for process, environment in sorted(ours, key=lambda pair: pair[0].create_time()):
        flow_run = environment.get(FLOW_RUN_VARIABLE)
        name = f"flow run {flow_run}" if flow_run else environment[SERVICE_VARIABLE]
        pids.setdefault(name, process.pid)
    return pids


def end_processes(processes: list[psutil.Process], *, grace_seconds: float) -> None:
    """Ask `processes` to end, and kill those that still run after `grace_seconds`."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=grace_seconds)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=5)


def require_free_ports(config: ServicesConfig) -> None:
    """Raise FractalError if a port of the servers is taken. The message names the process that
    listens on the port, and the key of the port in params.yaml."""
    for key, port in config.ports().items():
        require_free_port(port, f"set services.{key} in params.yaml to a free port")


def require_free_port(port: int, way_out: str) -> None:
    """Raise FractalError if a process listens on `port` of 127.0.0.1. The message advises to stop
    this process or to do what `way_out` says."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise FractalError(
                f"port {port} of 127.0.0.1 is taken by {_listener(port)} ({error.strerror}): stop "
                f"that process, or {way_out}"
            ) from error


def _listener(port: int) -> str:
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            is_at_port = connection.laddr and connection.laddr.port == port
            if is_at_port and connection.status == psutil.CONN_LISTEN and connection.pid:
                return f"process {connection.pid} ({psutil.Process(connection.pid).name()})"
    return "a process of another user"
