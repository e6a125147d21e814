"""One batch of metrics to an MLflow run: in one request, without patience, bad values set apart.

MLflow's client takes its timeout and its retries from the environment of the whole process, and
retries for minutes. The spool has its own, endless retries and must not change what other threads
wait for, so a request to a server is made here by MLflow's own HTTP function (its credentials and
headers) with a timeout and no retries. A store that is no server goes through `MlflowClient`.

Sending a batch again is harmless: MLflow's SQL store keeps a point (key, timestamp, step, value)
of a run once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlflow
from mlflow.entities import Metric
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_TIMEOUT
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.service_pb2 import LogBatch
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.proto_json_utils import message_to_json
from mlflow.utils.rest_utils import http_request_safe
from mlflow.utils.validation import MAX_METRICS_PER_BATCH

from fractal_model.common.errors import one_line

REQUEST_SECONDS = 20
"""A request's time where MLFLOW_HTTP_REQUEST_TIMEOUT, which is obeyed, does not say."""
_FOR_EVER = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST")


@dataclass(frozen=True)
class Refusal:
    """Points that MLflow will never take, and why."""

    points: tuple[Metric, ...]
    reason: str
    run_is_gone: bool


class Delivery:
    """Sends to one run of the store that MLflow points to now."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        uri = mlflow.get_tracking_uri()
        self._server = uri if uri.startswith(("http://", "https://")) else None
        self._client = mlflow.MlflowClient(uri)

    def send(self, points: Sequence[Metric]) -> list[Refusal]:
        """Returns once every point is in the run or refused for ever; the refused ones.

        MlflowException and what else a store raises: not now, send them all again.
        """
        refused: list[Refusal] = []
        for start in range(0, len(points), MAX_METRICS_PER_BATCH):
            refused += self._send_or_halve(points[start : start + MAX_METRICS_PER_BATCH])
        return refused

    def _send_or_halve(self, points: Sequence[Metric]) -> list[Refusal]:
        """One bad name refuses its whole batch: halves find it, and the rest arrives."""
        try:
            self._log_batch(points)
        except MlflowException as error:
            if not self._is_for_ever(error):
                raise
            gone = not self._run_is_active()
            if gone or len(points) == 1:
                return [Refusal(tuple(points), one_line(error), gone)]
            middle = len(points) // 2
            return self._send_or_halve(points[:middle]) + self._send_or_halve(points[middle:])
        return []

    def _is_for_ever(self, error: MlflowException) -> bool:
        # A 400 or 404 that is not MLflow's own comes from something on the way, and may pass. So
        # may a missing permission: tokens are renewed.
        ours = self._server is None or isinstance(error, RestException)
        return ours and error.error_code in _FOR_EVER

    def _log_batch(self, points: Sequence[Metric]) -> None:
        if self._server is None:
            self._client.log_batch(self._run_id, metrics=list(points))
            return
        body = LogBatch(run_id=self._run_id, metrics=[point.to_proto() for point in points])
        self._request("POST", "log-batch", json=json.loads(message_to_json(body)))

    def _run_is_active(self) -> bool:
        try:
            if self._server is None:
                stage = self._client.get_run(self._run_id).info.lifecycle_stage
            else:
                found = self._request("GET", "get", params={"run_id": self._run_id})
                stage = found["run"]["info"]["lifecycle_stage"]
        except MlflowException as error:
            if not self._is_for_ever(error):
                raise
            return False
        return stage == "active"

    def _request(self, method: str, endpoint: str, **content: object) -> Any:
        timeout = MLFLOW_HTTP_REQUEST_TIMEOUT
        answer = http_request_safe(
            get_default_host_creds(self._server),
            f"/api/2.0/mlflow/runs/{endpoint}",
            method,
            timeout=timeout.get() if timeout.is_set() else REQUEST_SECONDS,
            max_retries=0,
            # No status is retried, so that the answer, with its reason, comes back to us.
            retry_codes=(),
            respect_retry_after_header=False,
            **content,
        )
        return answer.json()
