"""Mean and covariance of features: what the Fréchet distance needs to know of a set of images.

Apart from the distances, so that features of millions of images need not be extracted again when a
distance changes. Shapes: N images with D features each; D is 2048 (Inception pool_3).
"""

from dataclasses import dataclass, field
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics

from fractal_model.common.errors import FractalError

STATISTICS_VERSION = 1
"""To be raised when equal features give other numbers: references are made anew."""


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """What the Fréchet distance needs to know of a set of images."""

    mean: np.ndarray
    """float64 (D,)."""
    covariance: np.ndarray
    """float64 (D, D), with N − 1 in the denominator."""
    count: int
    """N, the number of images; 0 where whoever published the statistics does not say."""

    @classmethod
    def from_features(cls, features: Tensor) -> Self:
        """The statistics of features (N, D). FractalError: N is below 2, or not all are finite."""
        features = require_features(features, "features", at_least=2)
        found = fid_features_to_statistics(features)
        return cls(mean=found["mu"], covariance=found["sigma"], count=len(features))


@dataclass(eq=False)
class RunningStatistics:
    """`FeatureStatistics` of features that pass by in batches, however many: of real images.

    Sums are of differences from the first batch's mean, in float64: nothing cancels.
    """

    count: int = 0
    """Images so far."""
    shift: np.ndarray = field(default_factory=lambda: np.empty(0))
    sum: np.ndarray = field(default_factory=lambda: np.empty(0))
    products: np.ndarray = field(default_factory=lambda: np.empty(0))

    def add(self, features: Tensor) -> None:
        """Features (N, D). Raises FractalError for non-finite values."""
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
        """Raises FractalError for fewer than 2 images."""
        if self.count < 2:
            raise FractalError(f"features of images: found {self.count}, expected 2 or more")
        mean = self.sum / self.count
        covariance = (self.products - self.count * np.outer(mean, mean)) / (self.count - 1)
        return FeatureStatistics(self.shift + mean, covariance, self.count)


def require_features(features: Tensor, what: str, *, at_least: int = 1) -> Tensor:
    """(N, D) as float64 in main memory.

    Raises FractalError for another shape, fewer images than at_least, or non-finite values.
    """
    if features.ndim != 2:
        raise FractalError(f"{what}: found shape {tuple(features.shape)}, expected (images, width)")
    if len(features) < at_least:
        raise FractalError(
            f"{what}: the number of images is {len(features)}, expected {at_least} or more"
        )
    bad = int((~torch.isfinite(features)).any(dim=1).sum())
    if bad:
        raise FractalError(
            f"{what}: found NaN or infinity in {bad} of {len(features)} images, expected finite "
            "numbers; check the images and the weights"
        )
    return features.detach().to("cpu", torch.float64)
