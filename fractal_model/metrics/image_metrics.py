"""All metrics of a generated set at once.

Decided here: a metric that could not be computed is absent with its reason, never 0 or NaN.
Broken features are an error, as every number from them would be wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from torch import Tensor

from fractal_model.common.errors import FractalError
from fractal_model.metrics.bootstrap import frechet_standard_error
from fractal_model.metrics.distances import (
    checked_pair,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
)
from fractal_model.metrics.names import FID, INCEPTION_SCORE, KID, PRECISION, RECALL, error_of
from fractal_model.metrics.statistics import FeatureStatistics, checked_features


@dataclass(frozen=True)
class MetricResults:
    """Every metric is in exactly one of the two; `|` is the union of two results."""

    values: dict[str, float]
    """fid, fid_stderr, kid, kid_stderr, inception_score, precision, recall."""
    absent: dict[str, str]
    """Metric to the reason, on one line, why it has no value."""

    def __or__(self, other: MetricResults) -> MetricResults:
        return MetricResults(self.values | other.values, self.absent | other.absent)

    def renamed(self, label: Callable[[str], str]) -> MetricResults:
        """These results under other names."""
        values = {label(name): value for name, value in self.values.items()}
        return MetricResults(values, {label(name): why for name, why in self.absent.items()})


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
    """Metrics of features (N, 2048) of generated and (M, 2048) of real images.

    real_statistics are of all real images where real_features are a sample of them: the Fréchet
    distance takes the former, the other metrics the latter. logits (N, 1008) are the generated
    images'; without them the Inception Score is absent for reason_no_logits.
    Raises FractalError for non-finite features or logits and for unequal widths.
    """
    generated, real = checked_pair(generated_features, real_features)
    if logits is not None:
        logits = checked_features(logits, "logits")

    def fid() -> dict[str, float | str]:
        ours = FeatureStatistics.from_features(generated)
        theirs = real_statistics or FeatureStatistics.from_features(real)
        error = frechet_standard_error(generated, theirs, resamples=fid_resamples, seed=seed)
        return {FID: frechet_distance(ours, theirs), error_of(FID): error}

    def kid() -> dict[str, float | str]:
        distance = kernel_distance(
            generated, real, subsets=kid_subsets, subset_size=kid_subset_size, seed=seed
        )
        no_error = (
            f"{distance.subsets} subsets of {distance.subset_size} out of {len(generated)} "
            f"generated and {len(real)} real images leave nothing to estimate an error from"
        )
        error = distance.standard_error
        return {KID: distance.mean, error_of(KID): no_error if error is None else error}

    def manifold() -> dict[str, float | str]:
        precision, recall = precision_recall(generated, real, neighbours=neighbours)
        return {PRECISION: precision, RECALL: recall}

    def score() -> dict[str, float | str]:
        if logits is None:
            return {INCEPTION_SCORE: reason_no_logits}
        return {INCEPTION_SCORE: inception_score(logits, splits=splits, seed=seed)}

    return _collect(
        {
            (FID, error_of(FID)): fid,
            (KID, error_of(KID)): kid,
            (INCEPTION_SCORE,): score,
            (PRECISION, RECALL): manifold,
        }
    )


def results_table(results: MetricResults) -> pd.DataFrame:
    """Columns metric, value, reason: one row a metric; a value or why there is none."""
    rows: list[tuple[str, float | None, str]] = [(k, v, "") for k, v in results.values.items()]
    rows += [(name, None, reason) for name, reason in results.absent.items()]
    return pd.DataFrame(rows, columns=["metric", "value", "reason"])


def _collect(parts: dict[tuple[str, ...], Callable[[], dict[str, float | str]]]) -> MetricResults:
    """A float is a value, a text the reason for none; a FractalError is a reason for all names."""
    found: dict[str, float | str] = {}
    for names, compute in parts.items():
        try:
            found |= compute()
        except FractalError as error:
            found |= dict.fromkeys(names, str(error))
    return MetricResults(
        values={name: value for name, value in found.items() if not isinstance(value, str)},
        absent={name: value for name, value in found.items() if isinstance(value, str)},
    )
