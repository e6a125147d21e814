"""Early warnings: what a person would want to hear of before a day is lost.

Decided here: each warning is a metric of its own, so that it has a curve in MLflow, and a sentence
that is said once each time it begins.
"""

from collections import deque
from collections.abc import Mapping
from statistics import median

import numpy as np

from fractal_model.training.job import Curve, Report

SLOW_SHARE, STARVED_SHARE, WORSE = 0.5, 0.3, 0.2
"""Limits of speed, of waiting for data, and of the loss above the champion's, in nats per value."""
_FEWEST, _KEPT = 5, 50
"""Reports before the speed is compared, and reports that it is compared with."""


class Watch:
    """Looks at the reports of a run as they come."""

    def __init__(self, reference: Curve = ()) -> None:
        self._reference = reference
        self._speeds: deque[float] = deque(maxlen=_KEPT)
        self._told: set[str] = set()
        self._workers: int | None = None

    def look(self, report: Report) -> tuple[dict[str, float], list[str]]:
        """Further metrics of a report that has a loss, and the warnings that begin with it.

        `throughput_ratio`: images per second over the median of the reports before;
        `loss_over_reference`: loss less the champion's at this epoch.
        """
        metrics: dict[str, float] = {}
        changed = self._new_workers(report.workers)
        if len(self._speeds) >= _FEWEST:
            metrics["throughput_ratio"] = report.images_per_second / median(self._speeds)
        self._speeds.append(report.images_per_second)
        if self._reference and report.loss is not None:
            epochs, losses = zip(*self._reference, strict=True)
            expected = float(np.interp(report.epoch, epochs, losses))
            metrics["loss_over_reference"] = report.loss - expected
        return metrics, changed + self._warnings(report.data_wait_share, metrics)

    def _new_workers(self, workers: int) -> list[str]:
        before, self._workers = self._workers, workers
        if before is None or before == workers:
            return []
        self._speeds.clear()  # not comparable any more
        return [f"goes on with {workers} workers, there were {before}"]

    def _warnings(self, waiting: float, metrics: Mapping[str, float]) -> list[str]:
        ratio, over = metrics.get("throughput_ratio", 1.0), metrics.get("loss_over_reference", 0.0)
        now: dict[str, str] = {}
        if ratio < SLOW_SHARE:
            now["slow"] = f"{ratio:.0%} of the usual images a second"
        if waiting > STARVED_SHARE:
            now["starved"] = (
                f"waiting for data {waiting:.0%} of the time: more loader_processes or faster "
                f"storage would help"
            )
        if over > WORSE:
            now["worse"] = f"the loss is {over:.2f} above the champion's at this epoch"
        new = [text for kind, text in now.items() if kind not in self._told]
        self._told = set(now)
        return new
