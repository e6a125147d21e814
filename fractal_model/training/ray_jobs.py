"""Ray Jobs' adapter: a training run as a job of a cluster, followed from here.

Decided here: a job belongs to a size and a run (its metadata). One that is there already is joined
where it is of the same run, and stopped where it is of another, as the flow that had submitted it
was killed; so no orphan stays. The code travels along, so that the job runs what the flow runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import fractal_model
from fractal_model.errors import FractalError, one_line
from fractal_model.training.driver import JOB_VARIABLE, MARKER
from fractal_model.training.job import Report, TrainingJob

STOP_SECONDS, POLL_SECONDS = 25.0, 0.5
_LEFT_OUT = [".git", ".venv", ".venv.*", "data", "outputs", ".dvc", "docs", "tests", "mlruns"]
_PASSED_ON = ("AWS_", "FRACTAL_CACHE", "MLFLOW_TRACKING_", "MLFLOW_S3_")


class TrainingJobs:
    """The training jobs of one cluster."""

    def __init__(self, address: str) -> None:
        """FractalError: no Ray Jobs server answers at `address`."""
        from ray.job_submission import JobSubmissionClient

        try:
            self._client = JobSubmissionClient(address)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise FractalError(
                f"the Ray cluster RAY_ADDRESS={address} does not answer ({one_line(error)}): "
                f"start it (`make up` on one machine), or unset RAY_ADDRESS to run in this process"
            ) from error

    def train(
        self,
        job: TrainingJob,
        *,
        on_report: Callable[[Report], None],
        on_line: Callable[[str], None],
    ) -> str:
        """Run the job to its end, and return the last checkpoint's folder or address. Whatever
        ends this call before stops the job. FractalError: what the job says, or that it died."""
        name = self._join(job, on_line) or self._submit(job)
        follower = _Follower(on_report, on_line)
        try:
            asyncio.run(self._follow(name, follower))
            status = self._ended(name)
        except BaseException:
            with contextlib.suppress(Exception):  # what ended this call is what has to be told
                self.stop(name)
            raise
        if follower.checkpoint is None:
            reason = follower.error or self._client.get_job_info(name).message or "no reason given"
            raise FractalError(f"the Ray job {name} {status.lower()}: {one_line_of(reason)}")
        return follower.checkpoint

    def stop(self, name: str) -> None:
        """Stop a job and wait until its workers are gone. FractalError: it does not end."""
        self._client.stop_job(name)
        deadline = time.monotonic() + STOP_SECONDS
        while not self._client.get_job_status(name).is_terminal():
            if time.monotonic() > deadline:
                raise FractalError(
                    f"the Ray job {name} did not stop within {STOP_SECONDS:.0f} s: stop it with "
                    f"`ray job stop {name}`"
                )
            time.sleep(POLL_SECONDS)

    def running(self, size: str) -> dict[str, str]:
        """Jobs of this size that have not ended: name to fingerprint."""
        return {
            job.submission_id: job.metadata.get("fractal.fingerprint", "")
            for job in self._client.list_jobs()
            if job.submission_id
            and not job.status.is_terminal()
            and (job.metadata or {}).get("fractal.size") == size
        }

    def _join(self, job: TrainingJob, on_line: Callable[[str], None]) -> str | None:
        for name, fingerprint in self.running(job.size).items():
            if fingerprint == job.fingerprint:
                on_line(f"the Ray job {name} of this run is at work already: going on with it")
                return name
            on_line(f"the Ray job {name} of another run was left behind: stopping it")
            self.stop(name)
        return None

    def _submit(self, job: TrainingJob) -> str:
        variables = {k: v for k, v in os.environ.items() if k.startswith(_PASSED_ON)}
        return self._client.submit_job(
            entrypoint=f"{_interpreter()} -m fractal_model.training.driver",
            submission_id=f"train-{job.size}-{job.name[:8]}-{uuid4().hex[:6]}",
            metadata={"fractal.size": job.size, "fractal.fingerprint": job.fingerprint},
            runtime_env={
                "working_dir": str(Path(fractal_model.__file__).parents[1]),
                "excludes": _LEFT_OUT,
                "env_vars": {**variables, JOB_VARIABLE: job.model_dump_json()},
            },
        )

    async def _follow(self, name: str, follower: _Follower) -> None:
        async for text in self._client.tail_job_logs(name):
            follower.read(text)

    def _ended(self, name: str) -> str:
        """The log may end before the job does."""
        while not (status := self._client.get_job_status(name)).is_terminal():
            time.sleep(POLL_SECONDS)
        return str(status.value)


class _Follower:
    """Takes a job's log apart: reports, the result, and lines for people."""

    def __init__(self, on_report: Callable[[Report], None], on_line: Callable[[str], None]) -> None:
        self._on_report = on_report
        self._on_line = on_line
        self._rest = ""
        self.checkpoint: str | None = None
        self.error: str | None = None

    def read(self, text: str) -> None:
        """Some more of the log, cut anywhere."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._line(line)

    def _line(self, line: str) -> None:
        if not line.startswith(MARKER):
            if line.strip():
                self._on_line(line)
            return
        content = json.loads(line.removeprefix(MARKER))
        if "report" in content:
            self._on_report(content["report"])
        self.checkpoint = content.get("checkpoint", self.checkpoint)
        self.error = content.get("error", self.error)


def one_line_of(text: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else text


def _interpreter() -> str:
    """This one where the cluster is on this machine, else the one of the machine's image."""
    local = ("127.0.0.1", "localhost")
    address = os.environ.get("RAY_ADDRESS", "")
    return shlex.quote(sys.executable) if any(host in address for host in local) else "python"
