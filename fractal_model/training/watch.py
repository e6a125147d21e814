"""Early warnings: what a person would want to hear of before a day is lost.

Decided here: each is a metric of its own, so that it has a curve in MLflow, and a sentence that is
said once each time it begins.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from statistics import median

import numpy as np

from fractal_model.training.job import Curve, Report

SLOW_SHARE, STARVED_SHARE, WORSE = 0.5, 0.3, 0.2
"""What is warned of; the loss is in nats a value."""
_FEWEST, _KEPT = 5, 50


class Watch:
    """Looks at the reports of a run as they come."""

    def __init__(self, reference: Curve = ()) -> None:
        self._reference = reference
        self._speeds: deque[float] = deque(maxlen=_KEPT)
        self._told: set[str] = set()
        self._workers: int | None = None

    def look(self, report: Report) -> tuple[dict[str, float], list[str]]:
        """Further metrics, and what to warn of now.

        `throughput_ratio`: images a second over the median of the reports before;
        `loss_over_reference`: loss less the champion's at this epoch.
        """
        found: dict[str, float] = {}
        changed = self._new_workers(report.workers)
        speed = report.images_per_second
        if len(self._speeds) >= _FEWEST:
            found["throughput_ratio"] = speed / median(self._speeds)
        self._speeds.append(speed)
        if self._reference:
            epochs, losses = zip(*self._reference, strict=True)
            expected = float(np.interp(report.epoch, epochs, losses))
            found["loss_over_reference"] = report.loss - expected
        return found, changed + self._warnings(report.data_wait_share, found)

    def _new_workers(self, workers: int) -> list[str]:
        before, self._workers = self._workers, workers
        if before is None or before == workers:
            return []
        self._speeds.clear()  # not comparable any more
        return [f"goes on with {workers} workers, there were {before}"]

    def _warnings(self, waiting: float, values: Mapping[str, float]) -> list[str]:
        ratio = values.get("throughput_ratio", 1.0)
        over = values.get("loss_over_reference", 0.0)
        found = {
            "slow": (ratio < SLOW_SHARE, f"{ratio:.0%} of the usual images a second"),
            "starved": (
                waiting > STARVED_SHARE,
                f"waiting for data {waiting:.0%} of the time: more loader_processes or faster "
                f"storage would help",
            ),
            "worse": (over > WORSE, f"the loss is {over:.2f} above the champion's at this epoch"),
        }
        now = {kind for kind, (on, _) in found.items() if on}
        new = [found[kind][1] for kind in found if kind in now - self._told]
        self._told = now
        return new
