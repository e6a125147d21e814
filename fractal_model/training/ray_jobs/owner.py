"""Who has submitted a job and follows it: written into the job, so that others can tell."""

import getpass
import os
import socket
import time
from typing import Self

import psutil
from pydantic import ValidationError

from fractal_model.common.strict import StrictModel


class Owner(StrictModel):
    """A flow run and its process."""

    flow_run: str
    """Its id in Prefect; empty outside a flow."""
    prefect: str
    """Which Prefect server knows it."""
    user: str
    host: str
    process: int
    process_started: float
    """In seconds of the epoch: a process number is used again."""
    since: str

    @classmethod
    def current(cls, flow_run: str = "", prefect: str = "") -> Self:
        """This process."""
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
        """Read what `model_dump_json` wrote; None for anything else."""
        try:
            return cls.model_validate_json(text)
        except ValidationError:
            return None

    def is_process_dead(self) -> bool:
        """False also where this machine cannot tell, because the process is another machine's."""
        if self.host != socket.gethostname():
            return False
        try:
            process = psutil.Process(self.process)
            is_another = abs(process.create_time() - self.process_started) > 1
            return is_another or process.status() == psutil.STATUS_ZOMBIE
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
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
