"""All metrics of a set of generated images.

Decided here: a metric that cannot be computed is absent with its reason, never 0 or NaN. Features
that are not finite are an error, because every metric from them would be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pandas as pd
from torch import Tensor

from fractal_model.common.errors import FractalError
from fractal_model.metrics.bootstrap import frechet_standard_error
from fractal_model.metrics.distances import (
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
    require_feature_pair,
)
from fractal_model.metrics.names import FID, INCEPTION_SCORE, KID, PRECISION, RECALL, error_name
from fractal_model.metrics.statistics import FeatureStatistics, require_features


@dataclass(frozen=True)
class MetricResults:
    """Metrics with a value and metrics without one; `a | b` joins two results."""

    values: dict[str, float]
    """Value of each metric by name, for example of `fid` and `fid_stderr`."""
    absent: dict[str, str]
    """Reason on one line for each metric that has no value."""

    def __or__(self, other: MetricResults) -> MetricResults:
        return MetricResults(self.values | other.values, self.absent | other.absent)

    def rename(self, label: Callable[[str], str]) -> MetricResults:
        """Return these results under new names. `label` returns the new name for an old one."""
        values = {label(name): value for name, value in self.values.items()}
        return MetricResults(values, {label(name): text for name, text in self.absent.items()})


def image_metrics(
    generated_features: Tensor,
    real_features: Tensor,
    *,
    real_statistics: FeatureStatistics | None = None,
    fid_resamples: int = 20,
    kid_subsets: int = 100,
    kid_subset_size: int = 1000,
    neighbours: int = 3,
    splits: int = 10,
    seed: int = 0,
    logits: Tensor | None = None,
    reason_no_logits: str = "no logits of the Inception classifier were given",
) -> MetricResults:
    """Measure FID, KID, Inception Score, precision and recall, from features (N, D) of generated
    and (M, D) of real images.

    Only FID uses `real_statistics`, which may be of more real images than `real_features`. By
    default they are computed from `real_features`. `logits` (N, 1008) are of the generated images.
    Without them the Inception Score is absent, and the given reason is `reason_no_logits`.
    FractalError: features or logits are not finite, or D differs.
    """
    generated, real = require_feature_pair(generated_features, real_features)
    if logits is not None:
        logits = require_features(logits, "logits")
    results: dict[str, float | str] = {}

    @contextmanager
    def or_reason(*names: str) -> Iterator[None]:
        """If the block raises FractalError, store it as the reason why `names` have no value."""
        try:
            yield
        except FractalError as error:
            results.update(dict.fromkeys(names, str(error)))

    with or_reason(FID, error_name(FID)):
        statistics = FeatureStatistics.from_features(generated)
        target = real_statistics or FeatureStatistics.from_features(real)
        error = frechet_standard_error(generated, target, resamples=fid_resamples, seed=seed)
        results |= {FID: frechet_distance(statistics, target), error_name(FID): error}
    with or_reason(KID, error_name(KID)):
        kid = kernel_distance(
            generated, real, subsets=kid_subsets, subset_size=kid_subset_size, seed=seed
        )
        no_error = (
            f"{kid.subsets} subsets of {kid.subset_size} out of {len(generated)} generated and "
            f"{len(real)} real images give no standard error: it needs smaller subsets"
        )
        results[KID] = kid.mean
        results[error_name(KID)] = no_error if kid.standard_error is None else kid.standard_error
    with or_reason(INCEPTION_SCORE):
        if logits is None:
            raise FractalError(reason_no_logits)
        results[INCEPTION_SCORE] = inception_score(logits, splits=splits, seed=seed)
    with or_reason(PRECISION, RECALL):
        precision, recall = precision_recall(generated, real, neighbours=neighbours)
        results |= {PRECISION: precision, RECALL: recall}
    return MetricResults(
        values={name: value for name, value in results.items() if not isinstance(value, str)},
        absent={name: value for name, value in results.items() if isinstance(value, str)},
    )


def results_table(results: MetricResults) -> pd.DataFrame:
    """Return a table with the columns metric, value and reason, one row for each metric."""
    rows: list[tuple[str, float | None, str]] = [(k, v, "") for k, v in results.values.items()]
    rows += [(name, None, reason) for name, reason in results.absent.items()]
    return pd.DataFrame(rows, columns=["metric", "value", "reason"])
