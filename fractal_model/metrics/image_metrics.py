"""All metrics of a generated set at once.

Decided here: a metric that could not be computed is absent with its reason, never 0 or NaN.
Broken features are an error, as every number from them would be wrong.
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
    generated, real = require_feature_pair(generated_features, real_features)
    if logits is not None:
        logits = require_features(logits, "logits")
    found: dict[str, float | str] = {}

    @contextmanager
    def or_reason(*names: str) -> Iterator[None]:
        """A FractalError is the reason why none of these has a value."""
        try:
            yield
        except FractalError as error:
            found.update(dict.fromkeys(names, str(error)))

    with or_reason(FID, error_name(FID)):
        ours = FeatureStatistics.from_features(generated)
        theirs = real_statistics or FeatureStatistics.from_features(real)
        error = frechet_standard_error(generated, theirs, resamples=fid_resamples, seed=seed)
        found |= {FID: frechet_distance(ours, theirs), error_name(FID): error}
    with or_reason(KID, error_name(KID)):
        kid = kernel_distance(
            generated, real, subsets=kid_subsets, subset_size=kid_subset_size, seed=seed
        )
        no_error = (
            f"{kid.subsets} subsets of {kid.subset_size} out of {len(generated)} generated and "
            f"{len(real)} real images leave nothing to estimate an error from"
        )
        found[KID] = kid.mean
        found[error_name(KID)] = no_error if kid.standard_error is None else kid.standard_error
    with or_reason(INCEPTION_SCORE):
        if logits is None:
            raise FractalError(reason_no_logits)
        found[INCEPTION_SCORE] = inception_score(logits, splits=splits, seed=seed)
    with or_reason(PRECISION, RECALL):
        found[PRECISION], found[RECALL] = precision_recall(generated, real, neighbours=neighbours)
    return MetricResults(
        values={name: value for name, value in found.items() if not isinstance(value, str)},
        absent={name: value for name, value in found.items() if isinstance(value, str)},
    )


def results_table(results: MetricResults) -> pd.DataFrame:
    """Columns metric, value, reason: one row a metric; a value or why there is none."""
    rows: list[tuple[str, float | None, str]] = [(k, v, "") for k, v in results.values.items()]
    rows += [(name, None, reason) for name, reason in results.absent.items()]
    return pd.DataFrame(rows, columns=["metric", "value", "reason"])
