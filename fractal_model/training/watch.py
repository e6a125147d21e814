"""Early warnings of a training that is slow, waits for data, or learns worse than its reference.

Decided here: the measured quantities are metrics, so that MLflow shows them as curves. A warning is
one sentence. It is given when its condition begins, and not repeated while the condition lasts.
The mean loss of one epoch is compared with the reference, because masks make single reports vary.
"""

from collections import deque
from collections.abc import Mapping
from statistics import fmean, median

from fractal_model.reporting.reference_curve import LOSS, Comparison, ReferenceCurve
from fractal_model.training.job import Report

SLOW_SHARE, STARVED_SHARE, WORSE_NATS = 0.5, 0.3, 0.2
"""Limits for warnings: the smallest share of the usual speed, the largest share of the time spent
waiting for data, and the largest excess of the loss over the reference's, in nats, if it is not
known which excess is normal."""
_MIN_REPORTS, _MAX_REPORTS = 5, 50
"""Smallest and largest number of earlier reports from which the usual speed is computed."""


class Watch:
    """Derives metrics and warnings from a run's reports, compared with a reference, if any."""

    def __init__(self, reference: ReferenceCurve | None = None) -> None:
        self._reference = reference
        self._speeds: deque[float] = deque(maxlen=_MAX_REPORTS)
        self._active: set[str] = set()
        self._workers: int | None = None
        self._first_epoch: float | None = None
        self._losses: deque[tuple[float, float]] = deque()

    def examine(self, report: Report) -> tuple[dict[str, float], list[str]]:
        """Return metrics derived from a report, and the warnings that begin with this report.

        `throughput_ratio`: images per second divided by their median over earlier reports.
        `loss_over_reference`: mean loss of the last epoch minus the reference's, in nats."""
        metrics: dict[str, float] = {}
        worker_changes = self._describe_worker_change(report.workers)
        if len(self._speeds) >= _MIN_REPORTS:
            metrics["throughput_ratio"] = report.images_per_second / median(self._speeds)
        self._speeds.append(report.images_per_second)
        comparison = self._compare_loss(report)
        if comparison is not None:
            metrics["loss_over_reference"] = comparison.excess
        warnings = self._new_warnings(report.data_wait_share, metrics, comparison)
        return metrics, worker_changes + warnings

    def _compare_loss(self, report: Report) -> Comparison | None:
        """Compare the mean loss of the last epoch with the reference. None: there is no reference,
        or less than an epoch was seen."""
        if self._reference is None or report.loss is None:
            return None
        if self._first_epoch is None:  # The first report of a new run covers its beginning.
            self._first_epoch = report.epoch if report.epoch > 1 else 0.0
        while self._losses and self._losses[-1][0] >= report.epoch:  # Workers repeat these steps.
            self._losses.pop()
        self._losses.append((report.epoch, report.loss))
        while self._losses[0][0] <= report.epoch - 1:
            self._losses.popleft()
        if report.epoch - self._first_epoch < 1:
            return None
        mean = fmean(loss for _, loss in self._losses)
        return self._reference.compare(LOSS, report.epoch, mean)

    def _describe_worker_change(self, workers: int) -> list[str]:
        before, self._workers = self._workers, workers
        if before is None or before == workers:
            return []
        self._speeds.clear()  # Speeds with another number of workers cannot be compared.
        return [f"the number of workers is now {workers} instead of {before}"]

    def _new_warnings(
        self, wait_share: float, metrics: Mapping[str, float], comparison: Comparison | None
    ) -> list[str]:
        ratio = metrics.get("throughput_ratio", 1.0)
        warnings: dict[str, str] = {}
        if ratio < SLOW_SHARE:
            warnings["slow"] = f"training runs at {ratio:.0%} of its usual images per second"
        if wait_share > STARVED_SHARE:
            warnings["starved"] = (
                f"workers wait for data {wait_share:.0%} of the time: raise loader_processes or "
                f"use faster storage"
            )
        if comparison is not None and _is_worse(comparison):
            warnings["worse"] = f"the mean loss of the last epoch is {comparison}"
        new = [text for kind, text in warnings.items() if kind not in self._active]
        self._active = set(warnings)
        return new


def _is_worse(comparison: Comparison) -> bool:
    if comparison.normal is None:
        return comparison.excess > WORSE_NATS
    return comparison.is_too_high
