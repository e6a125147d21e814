"""Distances between a generated and a real set of images, from their features.

Decided here: torch-fidelity computes them in float64. Every option is passed explicitly, so that a
new default cannot change a published number. Features that are not finite are refused.

Shapes: N images with D features each; D is 2048 (Inception pool_3).
"""

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

from fractal_model.common.errors import FractalError
from fractal_model.metrics.statistics import FeatureStatistics, require_features

PRECISION_RECALL_BATCH = 1000
"""Number of images whose distances to all images of the other set are computed at a time. For
50,000 images in the other set, these distances take 0.4 GB."""


@dataclass(frozen=True)
class KernelDistance:
    """The kernel inception distance (KID) and how it was computed."""

    mean: float
    """Mean over the subsets of the unbiased squared MMD (maximum mean discrepancy). May be < 0."""
    standard_error: float | None
    """Standard error of the mean. It is None if a subset has all images of the smaller set, or if
    there is only one subset, because it cannot be estimated then."""
    subsets: int
    subset_size: int
    """Number of images in each subset. It is at most the size of the smaller set."""


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Return the Fréchet inception distance (FID) between two sets of images, from the statistics
    of their features. Source: Heusel et al. 2017, section 3. FractalError: statistics that are not
    finite, or unequal D."""
    stats = [
        {
            "mu": np.asarray(one.mean, dtype=np.float64),
            "sigma": np.asarray(one.covariance, dtype=np.float64),
        }
        for one in (a, b)
    ]
    if not all(np.isfinite(part).all() for one in stats for part in one.values()):
        raise FractalError(
            "feature statistics: found NaN or infinity, expected finite numbers; compute them "
            "from finite features"
        )
    _require_equal_widths(*(one["mu"].shape[0] for one in stats))
    metrics = metric_fid.fid_statistics_to_metric(*stats, verbose=False)
    return float(metrics[metric_fid.KEY_METRIC_FID])


def kernel_distance(
    generated: Tensor, real: Tensor, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """Return the kernel inception distance (KID) between two sets of features, with a cubic kernel.

    Subsets are drawn without replacement and are at most as large as the smaller set. Let n be the
    number of images in the smaller set, m that in a subset, and σ the standard deviation of KID
    over the subsets. The standard error is σ √(m / (n − m) + 1 / subsets). Its first term, by the
    delete-d jackknife (Shao & Wu 1989), is due to the choice of the images, its second term to the
    choice of the subsets. Source: Binkowski et al. 2018, section 4, with subsets of 1000.
    FractalError: fewer than 2 images (also in a subset), no subset, features not finite, unequal D.
    """
    generated, real = require_feature_pair(generated, real, at_least=2)
    if subsets < 1 or subset_size < 2:
        raise FractalError(
            f"KID: subsets is {subsets} and subset_size {subset_size}, expected at least 1 subset "
            "of at least 2 images; raise them"
        )
    smaller, larger = sorted((len(generated), len(real)))
    size = min(subset_size, smaller)
    # If a subset is the whole of both sets, all subsets are equal.
    count = 1 if size == larger else subsets
    metrics = metric_kid.kid_features_to_metric(
        generated,
        real,
        kid_subsets=count,
        kid_subset_size=size,
        kid_kernel="poly",
        kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None,
        kid_kernel_poly_coef0=1,
        rng_seed=seed,
        verbose=False,
    )
    error = None
    if size < smaller and count > 1:
        # torch-fidelity divides by the number of subsets; the jackknife divides by one less.
        deviation = metrics[metric_kid.KEY_METRIC_KID_STD] * math.sqrt(count / (count - 1))
        error = deviation * math.sqrt(size / (smaller - size) + 1 / count)
    return KernelDistance(metrics[metric_kid.KEY_METRIC_KID_MEAN], error, count, size)


def precision_recall(
    generated: Tensor, real: Tensor, *, neighbours: int = 3
) -> tuple[float, float]:
    """Return precision and recall of generated images, each in [0, 1], from features (N, D).

    Precision is the share of generated images inside the manifold of the real images. Recall is the
    share of real images inside the manifold of the generated images. The manifold of a set is the
    union of balls around all its images; each ball reaches to the image's k-th nearest neighbour.
    Source: Kynkäänniemi et al. 2019; with k = `neighbours` = 3 as in ADM (Dhariwal & Nichol 2021).
    FractalError: k < 1, fewer than k + 1 images, features that are not finite, or unequal D.
    """
    if neighbours < 1:
        raise FractalError(f"neighbours: found {neighbours}, expected at least 1; raise it")
    generated, real = require_feature_pair(generated, real, at_least=neighbours + 1)
    metrics = metric_prc.prc_features_to_metric(
        generated,
        real,
        prc_neighborhood=neighbours,
        prc_batch_size=PRECISION_RECALL_BATCH,
        save_cpu_ram=True,
        verbose=False,
    )
    return metrics[metric_prc.KEY_METRIC_PRECISION], metrics[metric_prc.KEY_METRIC_RECALL]


def inception_score(logits: Tensor, *, splits: int = 10, seed: int = 0) -> float:
    """Return the Inception Score of N images with the `logits` (N, 1008); it is at least 1. The
    images are shuffled and split into `splits` equal groups, and the scores of the groups are
    averaged. Source: Salimans et al. 2016, section 4. FractalError: fewer images than splits, no
    split, or logits that are not finite."""
    if splits < 1:
        raise FractalError(f"Inception Score splits: found {splits}, expected at least 1; raise it")
    logits = require_features(logits, "logits", at_least=splits)
    metrics = metric_isc.isc_features_to_metric(logits, splits=splits, shuffle=True, rng_seed=seed)
    return float(metrics[metric_isc.KEY_METRIC_ISC_MEAN])


def require_feature_pair(
    generated: Tensor, real: Tensor, *, at_least: int = 1
) -> tuple[Tensor, Tensor]:
    """Check the features of N generated and M real images, (N, D) and (M, D), and return both as
    float64. FractalError: unequal D; see also `require_features`."""
    generated = require_features(generated, "generated features", at_least=at_least)
    real = require_features(real, "real features", at_least=at_least)
    _require_equal_widths(generated.shape[1], real.shape[1])
    return generated, real


def _require_equal_widths(a: int, b: int) -> None:
    if a != b:
        raise FractalError(
            f"features: found widths {a} and {b}, expected equal ones; use one network for both"
        )
