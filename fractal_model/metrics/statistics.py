"""Mean and covariance of features, from which the Fréchet distance is computed.

Decided here: the code of the statistics is separate from that of the distances, so that a change of
a distance does not force us to extract the features of millions of images again.
Shapes: N images with D features each; D is 2048 (Inception pool_3).
"""

from dataclasses import dataclass, field
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics

from fractal_model.common.errors import FractalError

STATISTICS_VERSION = 1
"""Version of the statistics' code. Raise it when the code gives other statistics for the same
features. All references are then made again."""


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Mean and covariance of the features of N images."""

    mean: np.ndarray
    """Mean of the features, (D,) float64."""
    covariance: np.ndarray
    """Covariance of the features, (D, D) float64, with N − 1 in the denominator."""
    count: int
    """Number N of images; 0 if it is unknown, as for published statistics."""

    @classmethod
    def from_features(cls, features: Tensor) -> Self:
        """Compute the statistics of features (N, D). FractalError: N is below 2, or a feature is
        not finite."""
        features = require_features(features, "features", at_least=2)
        statistics = fid_features_to_statistics(features)
        return cls(statistics["mu"], statistics["sigma"], len(features))


@dataclass(eq=False)
class RunningStatistics:
    """Sums over batches of features, for sets whose features do not all fit in the memory. The sums
    are float64. To keep precision, the first batch's mean is subtracted from all features."""

    count: int = 0
    """Number of images so far."""
    shift: np.ndarray = field(default_factory=lambda: np.empty(0))
    """Mean of the features in the first batch, (D,)."""
    sum: np.ndarray = field(default_factory=lambda: np.empty(0))
    """Sum over all images of (features − `shift`), (D,)."""
    products: np.ndarray = field(default_factory=lambda: np.empty(0))
    """Sum over all images of the outer product of (features − `shift`) with itself, (D, D)."""

    def add(self, features: Tensor) -> None:
        """Add a batch of features (N, D). FractalError: a value is not finite."""
        batch = require_features(features, "features").numpy().astype(np.float64)
        if not self.count:
            self.shift = batch.mean(axis=0)
            self.sum = np.zeros_like(self.shift)
            self.products = np.zeros((len(self.shift), len(self.shift)))
        batch -= self.shift
        self.count += len(batch)
        self.sum += batch.sum(axis=0)
        self.products += batch.T @ batch

    def statistics(self) -> FeatureStatistics:
        """Return the statistics of all images so far. FractalError: fewer than 2 images."""
        if self.count < 2:
            raise FractalError(f"found {self.count} images, expected 2 or more; add images")
        mean = self.sum / self.count
        covariance = (self.products - self.count * np.outer(mean, mean)) / (self.count - 1)
        return FeatureStatistics(self.shift + mean, covariance, self.count)


def require_features(features: Tensor, name: str, *, at_least: int = 1) -> Tensor:
    """Check features (N, D) and return them as float64 on the CPU. `name` names the features in
    errors. FractalError: another shape, fewer than `at_least` images, or values that are not
    finite."""
    if features.ndim != 2:
        raise FractalError(
            f"{name}: found shape {tuple(features.shape)}, expected (images, width); give one row "
            "of features for each image"
        )
    if len(features) < at_least:
        raise FractalError(
            f"{name}: the number of images is {len(features)}, expected {at_least} or more; add "
            "images"
        )
    bad = int((~torch.isfinite(features)).any(dim=1).sum())
    if bad:
        raise FractalError(
            f"{name}: found NaN or infinity in {bad} of {len(features)} images, expected finite "
            "numbers; check the images and the weights"
        )
    return features.detach().to("cpu", torch.float64)
