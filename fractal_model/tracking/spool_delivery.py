"""Delivers one batch of metrics to an MLflow run, and sets apart the points that MLflow refuses.

Decided here: `MlflowClient` sends, with the timeout and the retries of its process (`store.py`
keeps them short): the spool tries again for ever, and nothing but its own thread waits. Sending a
batch again is harmless, as MLflow's SQL store keeps a point (key, timestamp, step, value) of a run
once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlflow
from mlflow.entities import LifecycleStage, Metric
from mlflow.exceptions import MlflowException, RestException

from fractal_model.common.errors import one_line

_FOR_EVER = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST")


@dataclass(frozen=True)
class Refusal:
    """Points that MLflow will never take, and why."""

    points: Sequence[Metric]
    subject: str
    """What is refused: all metrics, or one by its name."""
    reason: str


class Delivery:
    """Sends to one run of the store that MLflow points to now."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._is_server = mlflow.get_tracking_uri().startswith(("http://", "https://"))
        self._client = mlflow.MlflowClient(mlflow.get_tracking_uri())

    def send(self, points: Sequence[Metric]) -> list[Refusal]:
        """Returns once every point is in the run or refused for ever; the refused ones. One bad
        name refuses its whole request: halves find it, and the rest arrives.

        MlflowException and what else a store raises: not now, send them all again.
        """
        try:
            self._client.log_batch(self._run_id, metrics=points, synchronous=True)
        except MlflowException as error:
            if not self._is_for_ever(error):
                raise
            if not self._run_is_active():
                return [Refusal(points, "all metrics", one_line(error))]
            if len(points) == 1:
                return [Refusal(points, f"metric {points[0].key!r}", one_line(error))]
            middle = len(points) // 2
            return self.send(points[:middle]) + self.send(points[middle:])
        return []

    def _is_for_ever(self, error: MlflowException) -> bool:
        # A 400 or 404 that is not MLflow's own comes from something on the way, and may pass. So
        # may a missing permission: tokens are renewed.
        is_mlflows = isinstance(error, RestException) or not self._is_server
        return is_mlflows and error.error_code in _FOR_EVER

    def _run_is_active(self) -> bool:
        try:
            run = self._client.get_run(self._run_id)
        except MlflowException as error:
            if not self._is_for_ever(error):
                raise
            return False
        return run.info.lifecycle_stage == LifecycleStage.ACTIVE
