"""Curves of earlier trainings, with which a training of the same size is compared.

Decided here: a loss is compared as the mean over one epoch, because the loss of a few batches
varies with their masks. If several trainings with the same recipe and other seeds are known, a
difference of at most NORMAL_SPREADS standard deviations between them is normal.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Self

import numpy as np

from fractal_model.common.strict import StrictModel
from fractal_model.metrics.names import NLL

LOSS = "loss"
LABELS = {LOSS: "loss", NLL: "held-out bits/dim"}
"""Metrics that are compared with a reference, and their names in messages."""
NORMAL_SPREADS = 5.0
"""The spread is estimated from few trainings, and a run is compared at every epoch, so the limit is
wider than the usual three."""
MOST_POINTS = 500
_ROUNDING = 0.1
"""A report that comes this share of an epoch after the epoch's end still belongs to it, because an
epoch rarely ends with a whole batch or with a report."""
Points = Sequence[tuple[float, float]]
"""Points of a curve as pairs (epoch, value), sorted by epoch."""


@dataclass(frozen=True)
class Comparison:
    """A value of a run compared with a reference."""

    name: str
    """Name of the reference, such as `the champion`."""
    excess: float
    """The run's value minus the reference's."""
    normal: float | None
    """Largest difference that is normal for another seed; None if unknown."""

    @property
    def is_too_high(self) -> bool:
        """True if the value is higher than another seed would explain."""
        return self.normal is not None and self.excess > self.normal

    def __str__(self) -> str:
        side = "above" if self.excess > 0 else "below"
        text = f"{abs(self.excess):.4f} {side} {self.name}"
        if self.normal is None:
            return text
        is_normal = abs(self.excess) <= self.normal
        return f"{text}, {'' if is_normal else 'not '}normal (±{self.normal:.4f})"


class CurvePoint(StrictModel):
    """The value of a metric in the epoch that ends at `epoch`."""

    epoch: float
    value: float
    spread: float | None = None
    """Standard deviation between trainings with other seeds; None if there is one training."""


class ReferenceCurve(StrictModel):
    """Metrics by epoch of an earlier training or, as a mean, of several with other seeds."""

    name: str
    """Name in messages, such as `the champion`."""
    curves: dict[str, tuple[CurvePoint, ...]]
    """Points by metric, sorted by epoch."""
    differences: tuple[str, ...] = ()
    """Settings in which the run that is compared differs, such as `epochs 3 instead of 22`."""

    @classmethod
    def of_run(cls, name: str, curves: Mapping[str, Points], differences: tuple[str, ...]) -> Self:
        """Return the reference made of the curves of one earlier training. A curve has at most
        MOST_POINTS points, because a reference travels in an environment variable."""
        points = {
            metric: tuple(
                CurvePoint(epoch=epoch, value=round(value, 5)) for epoch, value in _thin(means)
            )
            for metric, curve in curves.items()
            if (means := epoch_means(curve))
        }
        return cls(name=name, curves=points, differences=differences)

    def compare(self, metric: str, epoch: float, value: float) -> Comparison | None:
        """Compare a run's value of a metric at an epoch. None: the reference has no value there."""
        points = self.curves.get(metric, ())
        epochs = [point.epoch for point in points]
        if not points or not epochs[0] - _ROUNDING <= epoch <= epochs[-1] + 1:
            return None
        expected = float(np.interp(epoch, epochs, [point.value for point in points]))
        spreads = [point.spread for point in points if point.spread is not None]
        is_spread_known = len(spreads) == len(points) and not self.differences
        normal = None
        if is_spread_known:
            normal = NORMAL_SPREADS * float(np.interp(epoch, epochs, spreads)) + _bend(
                points, epoch
            )
        return Comparison(self.name, value - expected, normal)


def epoch_means(points: Points) -> list[tuple[float, float]]:
    """Return pairs (epoch, mean value in the epoch that ends there), without empty epochs."""
    values: defaultdict[int, list[float]] = defaultdict(list)
    for epoch, value in points:
        values[max(1, math.ceil(epoch - _ROUNDING))].append(value)
    return [(float(epoch), fmean(group)) for epoch, group in sorted(values.items())]


def _bend(points: Sequence[CurvePoint], epoch: float) -> float:
    """How far a curve may be from the straight line between its two points around `epoch`: at most
    a quarter of their difference, in their middle. Early losses fall by a third in an epoch."""
    for before, after in pairwise(points):
        if before.epoch <= epoch <= after.epoch:
            share = (epoch - before.epoch) / (after.epoch - before.epoch)
            return abs(after.value - before.value) * share * (1 - share)
    return 0.0


def describe_run(curves: Mapping[str, Points], reference: ReferenceCurve) -> list[str]:
    """Compare the last epoch of a run's curves with a reference; return a line for each metric."""
    lines = []
    for metric, label in LABELS.items():
        means = epoch_means(curves.get(metric, ()))
        comparison = reference.compare(metric, *means[-1]) if means else None
        if comparison is not None:
            epoch, value = means[-1]
            lines.append(f"{label} {value:.4f} at epoch {epoch:g}: {comparison}")
            if comparison.is_too_high:
                lines[-1] += "; look at curves.png, gradient_norm and skipped_batches of the run"
    if lines and reference.differences:
        lines.append(f"the run has another recipe: {', '.join(reference.differences)}")
    return lines


def _thin(points: Points) -> Points:
    """Return at most MOST_POINTS of the points, at even distances, the first and last included."""
    count = min(len(points), MOST_POINTS)
    return [points[round(index)] for index in np.linspace(0, len(points) - 1, count)]
