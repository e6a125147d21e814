"""Start, query and stop the supervisord of a run folder, through its socket."""

import contextlib
import subprocess
import sys
import time
import xmlrpc.client
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor.xmlrpc import SupervisorTransport

from fractal_model.common.errors import FractalError

DEAD = ("FATAL", "EXITED", "BACKOFF")
STOP_SECONDS = 100
"""Longest wait in seconds until all services have stopped. supervisord stops the four services one
after the other and kills a service that takes more than 20 s."""


@dataclass(frozen=True)
class Program:
    """One service as supervisord reports it, or one flow run."""

    name: str
    state: str
    """The state in the words of supervisord, such as RUNNING or EXITED."""
    pid: int
    """Process id; 0 if no process runs."""


class Supervisor:
    """Starts, queries and stops the supervisord of the run folder `run`."""

    def __init__(self, run: Path) -> None:
        self._run = run

    def start(self, configuration: str, environment: dict[str, str]) -> None:
        """Start supervisord in the background. `configuration` is the text of its configuration
        file. FractalError: supervisord does not start."""
        file = self._run / "supervisord.conf"
        file.write_text(configuration)
        command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(file)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        deadline = time.monotonic() + 30
        while done.returncode == 0 and time.monotonic() < deadline:
            if self.programs():
                return
            time.sleep(0.1)
        raise FractalError(
            f"supervisord does not start: {done.stderr.strip() or 'no answer on its socket'}; see "
            f"supervisord.log in {self._run / 'state'}"
        )

    def _call(self, method: str, *arguments: object) -> Any:
        transport = SupervisorTransport(None, None, f"unix://{self._run}/socket")
        # The address is not used: the transport goes through the socket.
        with xmlrpc.client.ServerProxy("http://127.0.0.1", transport) as server:
            return getattr(server.supervisor, method)(*arguments)

    def programs(self) -> dict[str, Program]:
        """The services by name; empty if supervisord does not answer."""
        try:
            infos = self._call("getAllProcessInfo")
        except (OSError, xmlrpc.client.Error):
            return {}
        return {
            info["name"]: Program(info["name"], info["statename"], info["pid"]) for info in infos
        }

    def start_program(self, name: str) -> None:
        """Start a service and return at once, before it runs; see its state in `programs`."""
        with contextlib.suppress(xmlrpc.client.Fault):
            self._call("startProcess", name, False)

    def shut_down(self) -> None:
        """Stop all programs, in the opposite order of their start, and supervisord itself."""
        with contextlib.suppress(OSError, xmlrpc.client.Error):
            self._call("shutdown")
        deadline = time.monotonic() + STOP_SECONDS
        while self.programs() and time.monotonic() < deadline:
            time.sleep(0.2)
