"""Metrics of a training by step, as MLflow stores and returns them."""

import math
from collections.abc import Mapping

import mlflow
from mlflow.exceptions import MlflowException


def report_values(report: Mapping[str, float]) -> tuple[dict[str, float], int]:
    """Return the metrics of a training report, and the step under which MLflow shows them: the
    number of images seen, so that runs with different batch sizes can be compared."""
    values = {key: value for key, value in report.items() if key not in ("position", "step")}
    return values, int(report["position"])


def last_position(run_id: str) -> int:
    """Number of images seen at the last report of a training run in MLflow. −1: there is no report,
    or MLflow does not answer."""
    try:
        points = mlflow.MlflowClient().get_metric_history(run_id, "epoch")
    except Exception:  # A store raises other errors than MLflow's, too.
        return -1
    return max((point.step for point in points), default=-1)


def training_seconds(run_id: str) -> float:
    """Seconds of all training steps of a run, from its reports: without the time for set-up,
    checkpoints and validations."""
    seconds, before = 0.0, 0
    for position, speed in history(run_id, "images_per_second"):
        seconds += (position - before) / speed if speed > 0 else 0.0
        before = position
    return seconds


def history(run_id: str, metric: str) -> tuple[tuple[int, float], ...]:
    """Points (number of images seen, value of the metric) of a training run, sorted. Of a step that
    was repeated, the last value counts."""
    points = mlflow.MlflowClient().get_metric_history(run_id, metric)
    return tuple(sorted({point.step: point.value for point in points}.items()))


def curve(run_id: str | None, metric: str) -> tuple[tuple[float, float], ...]:
    """Points (epoch, value of the metric) of a training run, sorted by epoch, without values that
    are not finite. Empty if `run_id` is None or the run was deleted."""
    if run_id is None:
        return ()
    client = mlflow.MlflowClient()
    try:
        epochs, values = (client.get_metric_history(run_id, key) for key in ("epoch", metric))
    except MlflowException:  # The run was deleted.
        return ()
    value_at = {point.step: point.value for point in values}
    pairs = [(p.value, value_at[p.step]) for p in epochs if p.step in value_at]
    return tuple(sorted(pair for pair in pairs if all(map(math.isfinite, pair))))
