"""The real images that are nearest to samples, in feature space: has the model learnt by heart?

A model that copies has samples much nearer to the training images than images are that it never
saw; so the distances of both are compared. Searched are the training images whose features the
reference keeps: where these are a part, a copy of another one is not seen, and a model that does
nothing but copy shows about that part of its samples as copies. Euclidean distances, exact, in
float64.

Shapes: N samples, M real images, D features each (2048: Inception pool_3), k neighbours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fractal_model.data.loader import read_batch
from fractal_model.data.prepared import PreparedSplit
from fractal_model.metrics.reference import OWN_IMAGES, Reference, choose_images
from fractal_model.metrics.statistics import require_features

CHUNK = 1000
"""Samples at a time: 80 MB of distances against 10,000 images."""
NEAR_COPY_QUANTILE = 0.01
"""Of the distances of the baseline: a sample below it is unusually near."""


@dataclass(frozen=True)
class RealImages:
    """Training images with their features; the pictures are read where they are wanted."""

    features: Tensor
    """(M, D)"""
    labels: Tensor
    """(M,) int64"""
    pictures: Callable[[Sequence[int]], Tensor]
    """Numbers among the M to (n, 3, S, S) uint8."""
    training_images: int
    """How many there are in all, of which these M are searched."""

    @property
    def searched(self) -> float:
        """The share of the training images that these are."""
        return len(self.features) / self.training_images


@dataclass(frozen=True)
class Memorisation:
    """Distances to the nearest training image."""

    samples: Tensor
    """(N,) of the samples."""
    baseline: Tensor
    """(K,) of real images that are no copies."""
    baseline_are: str
    """Which images these are."""

    @property
    def unusually_near(self) -> float:
        """Share of samples that are nearer than all but one in a hundred of the baseline: about
        0.01, or less, for a model that does not copy."""
        limit = self.baseline.quantile(NEAR_COPY_QUANTILE)
        return (self.samples < limit).double().mean().item()


def reference_images(split: PreparedSplit, reference: Reference) -> RealImages | None:
    """The training images behind the reference's features; None where they came with published
    statistics, whose images are not ours."""
    if reference.source != OWN_IMAGES:
        return None
    chosen = choose_images(split, len(reference.features))

    def pictures(numbers: Sequence[int]) -> Tensor:
        return read_batch(split, chosen[list(numbers)].tolist()).images

    labels = torch.from_numpy(split.labels()[chosen])
    return RealImages(reference.features, labels, pictures, len(split))


def nearest(
    queries: Tensor, real: Tensor, *, k: int = 1, themselves: bool = False
) -> tuple[Tensor, Tensor]:
    """(N, D) and (M, D) to the k nearest real images' distances (N, k) float64, ascending, and
    numbers (N, k) int64. `themselves`: the queries are the real images, none is its own neighbour.

    FractalError: non-finite features, or fewer real images than needed.
    """
    queries = require_features(queries, "features of the samples")
    real = require_features(real, "features of the real images", at_least=k + themselves)
    distances, numbers = [], []
    for start in range(0, len(queries), CHUNK):
        found = torch.cdist(queries[start : start + CHUNK], real)
        if themselves:
            found.diagonal(start).fill_(torch.inf)
        closest = found.topk(k, dim=1, largest=False)
        distances.append(closest.values)
        numbers.append(closest.indices)
    return torch.cat(distances), torch.cat(numbers)


def memorisation(
    nearest_of_samples: Tensor, real: RealImages, held_out: Tensor | None = None
) -> Memorisation:
    """(N,) distances of the samples beside those of `held_out` features (K, D) of validation
    images, which the model never saw; without them, of each searched training image to the others,
    which it saw."""
    if held_out is None:
        what = "training images, to the nearest other one"
        baseline, _ = nearest(real.features, real.features, themselves=True)
    else:
        what = "validation images"
        baseline, _ = nearest(held_out, real.features)
    return Memorisation(nearest_of_samples, baseline[:, 0], what)


def inside_manifold(samples: Tensor, real: Tensor, *, neighbours: int = 3) -> Tensor:
    """(N,) bool: inside one of the balls that reach each real image's k-th nearest neighbour. The
    share of them is the precision (Kynkäänniemi et al. 2019)."""
    samples = require_features(samples, "features of the samples")
    real = require_features(real, "features of the real images", at_least=neighbours + 1)
    radii = nearest(real, real, k=neighbours, themselves=True)[0][:, -1]
    chunks = (torch.cdist(chunk, real) <= radii for chunk in samples.split(CHUNK))
    return torch.cat([inside.any(dim=1) for inside in chunks])


def share_by_class(hits: Tensor, labels: Tensor, names: Sequence[str]) -> dict[str, float]:
    """(N,) bool and classes (N,) to each class's share of hits; classes without images are left
    out."""
    counts = torch.bincount(labels, minlength=len(names)).double()
    sums = torch.bincount(labels, weights=hits.double(), minlength=len(names))
    shares = sums / counts
    return {names[i]: shares[i].item() for i in range(len(names)) if counts[i]}
