"""Delivers one batch of metrics to an MLflow run, and returns the points that MLflow refuses.

Decided here: MLflow's client repeats a failed request only for some seconds (see `store.py`), since
the spool's thread sends a failed batch again. Sending a batch twice is harmless: MLflow's SQL store
keeps equal points (key, timestamp, step, value) of a run once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlflow
from mlflow.entities import LifecycleStage, Metric
from mlflow.exceptions import MlflowException, RestException

from fractal_model.common.errors import one_line

_PERMANENT = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST")
"""MLflow's error codes for points that it will never take."""


@dataclass(frozen=True)
class Refusal:
    """Points that MLflow will never take, with MLflow's reason."""

    points: Sequence[Metric]
    subject: str
    """What was refused, in words for a message: "metric 'loss'", or "all metrics" if the run is
    deleted."""
    reason: str


class Delivery:
    """Sends metrics to one run, in the store that MLflow uses when this object is created."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._is_server = mlflow.get_tracking_uri().startswith(("http://", "https://"))
        self._client = mlflow.MlflowClient(mlflow.get_tracking_uri())

    def send(self, points: Sequence[Metric]) -> list[Refusal]:
        """Send points to the run; return the points that MLflow refuses. MLflow refuses a whole
        request because of one bad name, so a refused request is halved until the bad point is sent
        alone; all others arrive. After any exception, all points must be sent again later."""
        try:
            self._client.log_batch(self._run_id, metrics=points, synchronous=True)
        except MlflowException as error:
            if not self._is_permanent(error):
                raise
            if not self._is_run_active():
                return [Refusal(points, "all metrics", one_line(error))]
            if len(points) == 1:
                return [Refusal(points, f"metric {points[0].key!r}", one_line(error))]
            middle = len(points) // 2
            return self.send(points[:middle]) + self.send(points[middle:])
        return []

    def _is_permanent(self, error: MlflowException) -> bool:
        # A status 400 or 404 without MLflow's error format comes from a proxy and may be temporary.
        # A missing permission is temporary too, as tokens are renewed.
        is_from_mlflow = isinstance(error, RestException) or not self._is_server
        return is_from_mlflow and error.error_code in _PERMANENT

    def _is_run_active(self) -> bool:
        try:
            run = self._client.get_run(self._run_id)
        except MlflowException as error:
            if not self._is_permanent(error):
                raise
            return False
        return run.info.lifecycle_stage == LifecycleStage.ACTIVE
