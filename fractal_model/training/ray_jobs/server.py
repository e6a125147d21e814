"""Client of Ray's Jobs API over HTTP. It limits waiting, repeats requests and shortens errors."""

import shlex
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, TypeVar

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from fractal_model.common.errors import FractalError, last_line

REQUEST_SECONDS = 60.0
RETRY_SECONDS, PATIENCE_SECONDS = 1.0, 30.0
"""Seconds between two attempts of a request; seconds after which no more attempts are made."""
_ERRORS = (AuthenticationError, OSError, RuntimeError, ValueError)
_AWAY = (ConnectionError, requests.ConnectionError, requests.Timeout)
"""Errors that mean that the server does not answer now, so the request is sent again."""
_UNAVAILABLE = ("status code 429", "status code 5")
Answer = TypeVar("Answer")


class _Client(JobSubmissionClient):
    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        # Ray's client sets no time limit and would wait for a half-open connection without end.
        return super()._do_request(method, endpoint, timeout=REQUEST_SECONDS, **options)


class JobsServer:
    """The Jobs API at one address. FractalError, from all methods but `tail` and `interpreter`: the
    server refuses the request, or does not answer for PATIENCE_SECONDS."""

    def __init__(self, address: str) -> None:
        """FractalError: no Ray Jobs server answers at `address`."""
        self._address = address
        try:
            self._client = _Client(address)
        except _ERRORS as error:
            raise FractalError(
                f"the Ray cluster RAY_ADDRESS={address} does not answer ({_reason(error)}): "
                f"start it (`make up` on one machine), or unset RAY_ADDRESS to run in this process"
            ) from error

    def jobs(self) -> list[JobDetails]:
        """Return all jobs of the cluster, also those that have ended."""
        return self._ask("list its jobs", self._client.list_jobs)

    def job(self, name: str, *, patience: float | None = None) -> JobDetails:
        """Return the status and metadata of a job. `patience`: seconds for which a failing request
        is repeated; None means PATIENCE_SECONDS."""
        return self._ask(
            f"tell the state of the job {name}", lambda: self._client.get_job_info(name), patience
        )

    def log(self, name: str) -> str:
        """Return the whole log of a job up to now."""
        return self._ask(f"give the log of the job {name}", lambda: self._client.get_job_logs(name))

    def tail(self, name: str) -> AsyncIterator[str]:
        """Yield a job's log from its beginning, and new text as it comes. The log may end before
        the job does. RuntimeError, OSError, aiohttp.ClientError: the connection broke."""
        return self._client.tail_job_logs(name)

    def stop(self, name: str) -> None:
        """Ask the cluster to stop a job, and return without waiting for its end."""
        self._ask(f"stop the job {name}", lambda: self._client.stop_job(name))

    def submit(self, name: str, **options: Any) -> None:
        """Submit a job. Its name must be new. `options`: arguments of Ray's `submit_job`."""

        def submit_once() -> None:
            try:
                self._client.submit_job(submission_id=name, **options)
            except RuntimeError as error:
                # The name is unique: an earlier attempt submitted the job, but its answer was lost.
                if "already exists" not in str(error):
                    raise

        self._ask(f"accept the job {name}", submit_once)

    def interpreter(self) -> str:
        """Return the command that starts Python in a job: the path of this Python if the cluster's
        head is this machine, else `python`. Host names decide whether it is this machine, because
        the address 127.0.0.1 may be a tunnel to another one."""
        with suppress(*_ERRORS, LookupError, TypeError):
            answer = self._client._do_request("GET", "/nodes?view=summary").json()
            nodes = [node["raylet"] for node in answer["data"]["summary"]]
            heads = [node["nodeManagerHostname"] for node in nodes if node.get("isHeadNode")]
            if heads[0] == socket.gethostname():
                return shlex.quote(sys.executable)
        return "python"

    def _ask(
        self, action: str, request: Callable[[], Answer], patience: float | None = None
    ) -> Answer:
        deadline = time.monotonic() + (PATIENCE_SECONDS if patience is None else patience)
        while True:
            try:
                return request()
            except _ERRORS as error:
                may_recover = isinstance(error, _AWAY) or any(x in str(error) for x in _UNAVAILABLE)
                if not may_recover or time.monotonic() > deadline:
                    raise FractalError(
                        f"the Ray cluster RAY_ADDRESS={self._address} does not {action} "
                        f"({_reason(error)}): check the cluster with `ray job list`, then run again"
                    ) from error
            time.sleep(RETRY_SECONDS)


def _reason(error: Exception) -> str:
    """Return the first line of an error's text, and the last line too if a traceback lies between
    them."""
    first, last = str(error).strip().partition("\n")[0].strip(), last_line(error)
    return last if first in ("", last) else f"{first.removesuffix(':')}: {last}"
