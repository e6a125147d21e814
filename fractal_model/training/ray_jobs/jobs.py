"""Adapter of Ray Jobs: runs a training as a job of a cluster and follows it from this process.

Decided here: a job's metadata names its size, run (by fingerprint) and owner. If the run that a
flow wants to train has a running job, the flow follows that job. A job of another run of the same
size is stopped if its flow is over. Otherwise it is left alone, because it may be a colleague's.
Cancelling a flow stops its job. After any other error the job continues, and the next flow run
follows it. The code is sent with the job, so that the job runs the same code as the flow.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from ray.job_submission import JobDetails

import fractal_model
from fractal_model.common.errors import FractalError, last_line
from fractal_model.common.installation import IS_WHEEL
from fractal_model.tracking.tags import FINGERPRINT_TAG, OWNER_TAG, SIZE_TAG
from fractal_model.training.job import Report, TrainingJob
from fractal_model.training.ray_jobs.driver import JOB_VARIABLE
from fractal_model.training.ray_jobs.log import JobLog, follow_log
from fractal_model.training.ray_jobs.owner import Owner
from fractal_model.training.ray_jobs.server import JobsServer

STOP_SECONDS, POLL_SECONDS = 25.0, 0.5
STATUS_SECONDS = 2.0
"""Seconds between requests for the status of a followed job."""
LOST_SECONDS = 600.0
"""If the cluster does not answer for this many seconds, the flow stops following its job."""
# A pattern without a slash matches at any depth. Ray's name of the folder itself is ".", which
# "/.?*" does not match.
_EXCLUDED = ["/.?*", "/data", "/docs", "/mlruns", "/outputs", "/tests", "__pycache__"]
_EXCLUDED += ["/prefect.toml"]  # `make up` writes it; it contains the login.
# Variables that a job gets from this process: only addresses and paths, because everybody who sees
# the cluster's jobs can read them. Secrets are set on the cluster's machines.
_PASSED_VARIABLES = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "FRACTAL_CACHE",
    "MLFLOW_S3_ENDPOINT_URL",
    "MLFLOW_TRACKING_INSECURE_TLS",
)


class TrainingJobs:
    """Starts, follows and stops the training jobs of one cluster, for one flow run."""

    def __init__(
        self, address: str, owner: Owner, is_over: Callable[[Owner, str], bool] = lambda *_: False
    ) -> None:
        """`is_over(owner, fingerprint)` returns True if the owner's flow, which trains the run with
        this fingerprint, is known to have ended. FractalError: no Ray Jobs server answers at
        `address`."""
        self._server = JobsServer(address)
        self._owner = owner
        self._is_over = is_over

    def train(
        self,
        job: TrainingJob,
        *,
        on_report: Callable[[Report], None],
        on_line: Callable[[str], None],
    ) -> str:
        """Start the job, or find it running, and follow it to its end; return the folder or address
        of the checkpoint to register. Cancelling and Ctrl-C stop the job, other errors do not.
        FractalError: the job failed, somebody else trains this size, or the cluster refuses it."""
        log = JobLog(on_report, on_line)
        running = self._find_running(job, on_line)
        name = running or f"train-{job.size}-{job.name[:8]}-{uuid4().hex[:6]}"
        try:
            if running is None:
                self._submit(name, job)
            details = follow_job(self._server, name, log)
        except BaseException as error:
            if not isinstance(error, Exception):
                with suppress(Exception):  # The caller gets the first error.
                    self.stop(name)
            raise
        with suppress(FractalError):  # The log may be lost with its machine.
            log.complete(self._server.log(name))
        if log.checkpoint is None:
            status = str(details.status.value).lower()
            reason = last_line(log.error or details.message or "no reason given")
            raise FractalError(
                f"the Ray job {name} {status} without a checkpoint (see `ray job logs {name}`): "
                f"{reason}"
            )
        return log.checkpoint

    def stop(self, name: str) -> None:
        """Stop a job and wait for its end. FractalError: it still runs after STOP_SECONDS."""
        self._server.stop(name)
        deadline = time.monotonic() + STOP_SECONDS
        while not self._server.job(name).status.is_terminal():
            if time.monotonic() > deadline:
                raise FractalError(
                    f"the Ray job {name} did not stop within {STOP_SECONDS:.0f} s: stop it with "
                    f"`ray job stop {name}`"
                )
            time.sleep(POLL_SECONDS)

    def stop_run(self, size: str, fingerprint: str, on_line: Callable[[str], None]) -> None:
        """If the run with this fingerprint has a running job that no flow follows any more, stop
        the job. FractalError: another flow may still follow the job, so it is not stopped."""
        for running in self._running(size):
            if _tag(running, FINGERPRINT_TAG) == fingerprint:
                self._stop_orphan(running, on_line)

    def _running(self, size: str) -> list[JobDetails]:
        return [
            job
            for job in self._server.jobs()
            if job.submission_id and not job.status.is_terminal() and _tag(job, SIZE_TAG) == size
        ]

    def _find_running(self, job: TrainingJob, on_line: Callable[[str], None]) -> str | None:
        """Return the name of the running job that trains the same run as `job`, or None. Stop the
        jobs of other runs of this size. FractalError: another flow may still follow such a job."""
        for running in self._running(job.size):
            name = running.submission_id
            if _tag(running, FINGERPRINT_TAG) == job.fingerprint:
                on_line(f"the Ray job {name} of this run is running already: following it")
                return name
            self._stop_orphan(running, on_line)
        return None

    def _stop_orphan(self, running: JobDetails, on_line: Callable[[str], None]) -> None:
        """Stop a running job if the flow that started it is over, or is this flow. FractalError:
        another flow may still be using the job, so it is not stopped."""
        name, owner = str(running.submission_id), Owner.read(_tag(running, OWNER_TAG))
        is_orphan = owner is not None and (
            owner.flow_run == self._owner.flow_run != ""
            or self._is_over(owner, _tag(running, FINGERPRINT_TAG))
        )
        if not is_orphan:
            raise FractalError(
                f"the Ray job {name} of {owner or 'somebody unknown'} trains "
                f"{_tag(running, SIZE_TAG)} already: wait for its end, cancel its flow run, or "
                f"stop it with `ray job stop {name}`"
            )
        on_line(f"the Ray job {name} was left behind by {owner}: stopping it")
        self.stop(name)

    def _submit(self, name: str, job: TrainingJob) -> None:
        _require_no_password(job.tracking_uri)
        variables = {key: os.environ[key] for key in _PASSED_VARIABLES if key in os.environ}
        variables |= {"MLFLOW_TRACKING_URI": job.tracking_uri, JOB_VARIABLE: job.model_dump_json()}
        self._server.submit(
            name,
            entrypoint=f"{self._server.interpreter()} -m fractal_model.training.ray_jobs.driver",
            metadata={
                SIZE_TAG: job.size,
                FINGERPRINT_TAG: job.fingerprint,
                OWNER_TAG: self._owner.model_dump_json(),
            },
            runtime_env={**_code_to_send(), "env_vars": variables},
        )


def _code_to_send() -> dict[str, Any]:
    """The part of a runtime environment with our code. The folder of a wheel also has all other
    packages, so only the package itself is sent."""
    package = Path(fractal_model.__file__).parent
    if IS_WHEEL:
        return {"py_modules": [str(package)]}
    return {"working_dir": str(package.parent), "excludes": _EXCLUDED}


def follow_job(server: JobsServer, name: str, log: JobLog) -> JobDetails:
    """Pass a job's log to `log` until the job has ended; return Ray's details of the job. The job's
    status is requested too, because a log may end before its job. FractalError: the cluster does
    not answer for LOST_SECONDS."""
    next_request = 0.0
    with follow_log(lambda: server.tail(name)) as next_part:
        while True:
            log.read(next_part(POLL_SECONDS))
            if time.monotonic() < next_request:
                continue
            job = server.job(name, patience=LOST_SECONDS)
            if job.status.is_terminal():
                return job
            next_request = time.monotonic() + STATUS_SECONDS


def _tag(job: JobDetails, name: str) -> str:
    return (job.metadata or {}).get(name, "")


def _require_no_password(uri: str) -> None:
    if urlsplit(uri).password:
        raise FractalError(
            "MLFLOW_TRACKING_URI holds a password, and everybody who lists the Ray cluster's jobs "
            "could read it: give an MLflow server's address without the password, and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD here and on its machines"
        )
