"""The comparison of a study's variants: means over the seeds, and differences to the base.

Decided here: a difference is paired by seed, because trainings with the same seed see their images
in the same order. It counts if it is larger than two of its standard errors.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Literal

from fractal_model.common.strict import StrictModel
from fractal_model.metrics.names import CONDITIONAL_NLL, FD_DINOV2, FID, KID, NLL
from fractal_model.studies.study_file import BASE
from fractal_model.studies.trial_table import Curve, TrialRow

ERRORS = 2.0
"""Number of standard errors from which on a difference counts."""
_LOWER_IS_BETTER = (NLL, CONDITIONAL_NLL, FID, KID, FD_DINOV2, "seconds_per_image")


class Estimate(StrictModel):
    """The mean of some values and its standard error, which a single value does not have."""

    mean: float
    error: float | None
    count: int

    @property
    def is_significant(self) -> bool:
        """True if the mean is further from 0 than `ERRORS` standard errors."""
        return self.error is not None and abs(self.mean) > ERRORS * self.error


class MetricComparison(StrictModel):
    """One metric of one variant."""

    value: Estimate
    difference: Estimate | None
    """Variant minus base, over the seeds that both have; None for the base, or without such a
    seed."""
    verdict: Literal["better", "worse", ""]
    """Outcome for the variant; "" if the difference does not count."""


class VariantComparison(StrictModel):
    """All metrics of one variant, by name. A metric that no seed has is left out."""

    variant: str
    seeds: int
    images: int
    """Largest number of images that a training has seen."""
    minutes: Estimate
    images_to_base: Estimate | None
    """Images after which the curve reaches the last value of the base's curve, divided by the
    images of that value; None if no seed has both curves and reaches it."""
    metrics: dict[str, MetricComparison]


def compare_variants(
    rows: Sequence[TrialRow], variants: Sequence[str]
) -> tuple[VariantComparison, ...]:
    """Compare the variants, in the order of their names in `variants`. A variant without rows is
    left out."""
    by_variant = {name: [row for row in rows if row.variant == name] for name in variants}
    base = by_variant.get(BASE, [])
    return tuple(_compare(name, own, base) for name, own in by_variant.items() if own)


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of at least one value, and its standard error."""
    count = len(values)
    error = statistics.stdev(values) / math.sqrt(count) if count > 1 else None
    return Estimate(mean=statistics.fmean(values), error=error, count=count)


def _compare(name: str, rows: Sequence[TrialRow], base: Sequence[TrialRow]) -> VariantComparison:
    metrics = {}
    for metric in rows[0].metrics:
        own, theirs = _values(rows, metric), _values(base, metric)
        pairs = [own[seed] - theirs[seed] for seed in own if seed in theirs and name != BASE]
        difference = estimate(pairs) if pairs else None
        if own:
            metrics[metric] = MetricComparison(
                value=estimate(list(own.values())),
                difference=difference,
                verdict=_verdict(metric, difference),
            )
    bases = {row.seed: row.curve for row in base}
    reached = (images_to_reach(row.curve, bases.get(row.seed, ())) for row in rows)
    shares = [share for share in reached if share is not None]
    return VariantComparison(
        variant=name,
        seeds=len(rows),
        images=max(row.images for row in rows),
        minutes=estimate([row.minutes for row in rows]),
        images_to_base=estimate(shares) if shares else None,
        metrics=metrics,
    )


def images_to_reach(curve: Curve, base: Curve) -> float | None:
    """Return the images after which `curve` is first as low as the last point of `base`, on
    straight lines between its points, divided by the images of that point. None: it never is, or a
    curve is empty."""
    if not base:
        return None
    images, target = base[-1]
    before: tuple[int, float] | None = None
    for position, bits in curve:
        if bits <= target:
            if before is None:
                return position / images
            start, above = before
            share = (above - target) / (above - bits)
            return (start + share * (position - start)) / images
        before = position, bits
    return None


def _values(rows: Sequence[TrialRow], metric: str) -> Mapping[int, float]:
    """Values of a metric by seed."""
    values = ((row.seed, row.metrics[metric]) for row in rows)
    return {seed: value for seed, value in values if value is not None}


def _verdict(metric: str, difference: Estimate | None) -> Literal["better", "worse", ""]:
    if difference is None or not difference.is_significant:
        return ""
    return "better" if (difference.mean < 0) == (metric in _LOWER_IS_BETTER) else "worse"
