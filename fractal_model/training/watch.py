"""Early warnings of a training that is slow, waits for data, or learns worse than the champion.

Decided here: the measured quantities are metrics, so that MLflow shows them as curves. A warning is
one sentence. It is given when its condition begins, and not repeated while the condition lasts.
"""

from collections import deque
from collections.abc import Mapping
from statistics import median

import numpy as np

from fractal_model.training.job import Curve, Report

SLOW_SHARE, STARVED_SHARE, WORSE_NATS = 0.5, 0.3, 0.2
"""Limits for warnings: the smallest share of the usual speed, the largest share of the time spent
waiting for data, and the largest excess of the loss over the champion's, in nats."""
_MIN_REPORTS, _MAX_REPORTS = 5, 50
"""Smallest and largest number of earlier reports from which the usual speed is computed."""


class Watch:
    """Derives metrics and warnings from a run's reports. `reference`: the champion's loss curve."""

    def __init__(self, reference: Curve = ()) -> None:
        self._reference = reference
        self._speeds: deque[float] = deque(maxlen=_MAX_REPORTS)
        self._active: set[str] = set()
        self._workers: int | None = None

    def examine(self, report: Report) -> tuple[dict[str, float], list[str]]:
        """Return metrics derived from a report, and the warnings that begin with this report.

        `throughput_ratio`: images per second divided by their median over earlier reports.
        `loss_over_reference`: loss minus the champion's loss at the same epoch, in nats."""
        metrics: dict[str, float] = {}
        worker_changes = self._describe_worker_change(report.workers)
        if len(self._speeds) >= _MIN_REPORTS:
            metrics["throughput_ratio"] = report.images_per_second / median(self._speeds)
        self._speeds.append(report.images_per_second)
        if self._reference and report.loss is not None:
            epochs, losses = zip(*self._reference, strict=True)
            expected = float(np.interp(report.epoch, epochs, losses))
            metrics["loss_over_reference"] = report.loss - expected
        return metrics, worker_changes + self._new_warnings(report.data_wait_share, metrics)

    def _describe_worker_change(self, workers: int) -> list[str]:
        before, self._workers = self._workers, workers
        if before is None or before == workers:
            return []
        self._speeds.clear()  # Speeds with another number of workers cannot be compared.
        return [f"the number of workers is now {workers} instead of {before}"]

    def _new_warnings(self, wait_share: float, metrics: Mapping[str, float]) -> list[str]:
        ratio = metrics.get("throughput_ratio", 1.0)
        excess = metrics.get("loss_over_reference", 0.0)
        warnings: dict[str, str] = {}
        if ratio < SLOW_SHARE:
            warnings["slow"] = f"training runs at {ratio:.0%} of its usual images per second"
        if wait_share > STARVED_SHARE:
            warnings["starved"] = (
                f"workers wait for data {wait_share:.0%} of the time: raise loader_processes or "
                f"use faster storage"
            )
        if excess > WORSE_NATS:
            warnings["worse"] = f"the loss is {excess:.2f} nats above the champion's at this epoch"
        new = [text for kind, text in warnings.items() if kind not in self._active]
        self._active = set(warnings)
        return new
