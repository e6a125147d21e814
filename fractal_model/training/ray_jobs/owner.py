"""The owner of a Ray job, stored with the job: the flow run and process that submitted it."""

import getpass
import os
import socket
import time
from typing import Self

import psutil
from pydantic import ValidationError

from fractal_model.common.strict import StrictModel


class Owner(StrictModel):
    """The flow run that submitted a Ray job, and the process that ran the flow."""

    flow_run: str
    """Id of the flow run in Prefect; empty outside a flow."""
    prefect: str
    """Address of the Prefect server that has the flow run."""
    user: str
    host: str
    process: int
    process_started: float
    """Start of the process in seconds since 1970. Another process may get the same id later."""
    since: str
    """Local time at which the owner was recorded, for people."""

    @classmethod
    def current(cls, flow_run: str = "", prefect: str = "") -> Self:
        """Return an owner with the given flow run and with this process, user and machine."""
        return cls(
            flow_run=flow_run,
            prefect=prefect,
            user=_user(),
            host=socket.gethostname(),
            process=os.getpid(),
            process_started=psutil.Process().create_time(),
            since=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        )

    @classmethod
    def read(cls, text: str) -> Self | None:
        """Return the owner that `text` describes as JSON, or None if `text` is something else."""
        try:
            return cls.model_validate_json(text)
        except ValidationError:
            return None

    def is_process_dead(self) -> bool:
        """True if the process has certainly ended. Always False for a process on another
        machine."""
        if self.host != socket.gethostname():
            return False
        try:
            process = psutil.Process(self.process)
            is_other = abs(process.create_time() - self.process_started) > 1
            return is_other or process.status() == psutil.STATUS_ZOMBIE
        except psutil.AccessDenied:
            return False
        except psutil.NoSuchProcess:
            return True

    def __str__(self) -> str:
        flow = f" in the flow run {self.flow_run}" if self.flow_run else ""
        return f"{self.user} on {self.host} (process {self.process}){flow} since {self.since}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # A user of a container may have no name.
        return str(os.getuid())
