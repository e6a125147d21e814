"""Processes that the servers left, found by the mark in their environment, and who has a port."""

import contextlib
import os
import socket

import psutil

from fractal_model.common.errors import FractalError
from fractal_model.config.services import ServicesConfig
from fractal_model.services.configuration import MARK


def marked(run: str, variable: str | None = None) -> list[psutil.Process]:
    """The living processes that inherited this run folder's mark, and `variable` where given."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            environment = process.environ()
            ours = environment.get(MARK) == run and process.pid != os.getpid()
            lives = process.status() != psutil.STATUS_ZOMBIE
            if ours and lives and (variable or MARK) in environment:
                found.append(process)
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
