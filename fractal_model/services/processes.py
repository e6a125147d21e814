"""Processes that the servers left, found by the mark in their environment, and who has a port."""

import contextlib
import os
import socket
from collections.abc import Iterator

import psutil

from fractal_model.common.errors import FractalError
from fractal_model.config.services import ServicesConfig
from fractal_model.services.configuration import MARK

FLOW_RUN = "PREFECT__FLOW_RUN_ID"
"""In the environment of a flow run's process."""
SERVICE = "SUPERVISOR_PROCESS_NAME"
"""In the environment of a service and all that it starts, set by supervisord."""


def living() -> Iterator[tuple[psutil.Process, dict[str, str]]]:
    """The living processes that may be looked at, and their environments."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            environment = process.environ()
            if process.status() != psutil.STATUS_ZOMBIE:
                yield process, environment


def marked(run: str, variable: str = MARK) -> list[psutil.Process]:
    """The living processes that inherited this run folder's mark, and have `variable`."""
    return [
        process
        for process, environment in living()
        if environment.get(MARK) == run and variable in environment and process.pid != os.getpid()
    ]


def services_and_flow_runs(run: str) -> dict[str, int]:
    """Process numbers of what runs of this run folder, whether supervisord does or not: services by
    name, flow runs as `flow run <id>`. Of several processes it is the oldest."""
    found: dict[str, int] = {}
    ours = [each for each in living() if each[1].get(MARK) == run and SERVICE in each[1]]
    for process, environment in sorted(ours, key=lambda each: each[0].create_time()):
        flow_run = environment.get(FLOW_RUN)
        name = f"flow run {flow_run}" if flow_run else environment[SERVICE]
        found.setdefault(name, process.pid)
    return found


def end(processes: list[psutil.Process], *, grace_seconds: float) -> None:
    """Ask them to end; those that have not after the grace are killed."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=grace_seconds)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=5)


def require_free_ports(config: ServicesConfig) -> None:
    """FractalError: something listens on one already; it says what and which key to change."""
    for key, port in config.ports().items():
        require_free_port(port, f"set services.{key} in params.yaml to a free port")


def require_free_port(port: int, way_out: str) -> None:
    """FractalError: something listens on the port of 127.0.0.1; it says what, and the way out."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise FractalError(
                f"port {port} of 127.0.0.1 is taken by {_listener(port)} ({error.strerror}): stop "
                f"that, or {way_out}"
            ) from error


def _listener(port: int) -> str:
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            is_at_port = connection.laddr and connection.laddr.port == port
            if is_at_port and connection.status == psutil.CONN_LISTEN and connection.pid:
                return f"process {connection.pid} ({psutil.Process(connection.pid).name()})"
    return "a process of somebody else"
