"""Find the real images that are nearest to samples in feature space: does the model copy them?

The samples of a model that copies are much nearer to the training images than new images are.
Decided here: only the training images whose features the reference keeps are searched. If these are
a tenth of all training images, only about a tenth of the copies are found. Distances are Euclidean,
exact and in float64.

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
"""Samples whose distances are computed at a time. Distances to 10,000 images then take 80 MB."""
NEAR_COPY_QUANTILE = 0.01
"""A sample is unusually near if its distance is below this quantile of the baseline's distances."""


@dataclass(frozen=True)
class RealImages:
    """M training images with their features. Their pictures are read on demand."""

    features: Tensor
    """Features of the M images, (M, D)."""
    labels: Tensor
    """Class of each of the M images, (M,) int64."""
    pictures: Callable[[Sequence[int]], Tensor]
    """Function from n indices among the M images to pictures (n, 3, S, S) uint8."""
    training_images: int
    """Number of images in the training split. Only M of them are searched for neighbours."""

    @property
    def searched_share(self) -> float:
        """Share of the training images that are searched for neighbours."""
        return len(self.features) / self.training_images


@dataclass(frozen=True)
class Memorisation:
    """Distances of samples, and of real images as a baseline, to the nearest training image."""

    samples: Tensor
    """Distance of each of N samples to the nearest training image, (N,)."""
    baseline: Tensor
    """Distance of each of K real images to the nearest training image except itself, (K,)."""
    baseline_name: str
    """Name of the real images in the baseline, for captions."""

    @property
    def unusually_near(self) -> float:
        """Share of samples that are nearer to a training image than 99 % of the baseline's images.
        It is about 0.01 or less if the model does not copy."""
        limit = self.baseline.quantile(NEAR_COPY_QUANTILE)
        return (self.samples < limit).double().mean().item()


def reference_images(split: PreparedSplit, reference: Reference) -> RealImages | None:
    """Return the training images whose features the reference has; None if the reference is made
    from published statistics."""
    if reference.source != OWN_IMAGES:
        return None
    indices = choose_images(split, len(reference.features))

    def pictures(numbers: Sequence[int]) -> Tensor:
        return read_batch(split, indices[list(numbers)].tolist()).images

    labels = torch.from_numpy(split.labels()[indices])
    return RealImages(reference.features, labels, pictures, len(split))


def find_nearest(
    queries: Tensor, real: Tensor, *, k: int = 1, themselves: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the distances (N, k) float64 of queries (N, D) to their k nearest real images (M, D),
    ascending, and the indices (N, k) int64 of these images. With `themselves`, the queries must be
    the real images, and no image counts as its own neighbour.

    FractalError: features are not finite, or there are fewer real images than needed.
    """
    queries = require_features(queries, "features of the samples")
    real = require_features(real, "features of the real images", at_least=k + themselves)
    distances, numbers = [], []
    for start in range(0, len(queries), CHUNK):
        chunk = torch.cdist(queries[start : start + CHUNK], real)
        if themselves:
            chunk.diagonal(start).fill_(torch.inf)
        closest = chunk.topk(k, dim=1, largest=False)
        distances.append(closest.values)
        numbers.append(closest.indices)
    return torch.cat(distances), torch.cat(numbers)


def measure_memorisation(
    nearest_of_samples: Tensor, real: RealImages, held_out: Tensor | None = None
) -> Memorisation:
    """Compare the samples' distances (N,) to the nearest training image with a baseline: the
    distances of validation images, whose features are `held_out` (K, D). If `held_out` is None, the
    baseline is the distance of each searched training image to the nearest other one."""
    if held_out is None:
        name = "training images, to the nearest other one"
        baseline, _ = find_nearest(real.features, real.features, themselves=True)
    else:
        name = "validation images"
        baseline, _ = find_nearest(held_out, real.features)
    return Memorisation(nearest_of_samples, baseline[:, 0], name)


def is_inside_manifold(samples: Tensor, real: Tensor, *, neighbours: int = 3) -> Tensor:
    """Return for each sample whether it lies in the manifold of the real images, (N,) bool. Around
    each real image there is a ball that reaches to the k-th nearest other real image, with k =
    `neighbours`. All balls together are the manifold. The share of samples in it is the precision
    of Kynkäänniemi et al. 2019."""
    samples = require_features(samples, "features of the samples")
    real = require_features(real, "features of the real images", at_least=neighbours + 1)
    radii = find_nearest(real, real, k=neighbours, themselves=True)[0][:, -1]
    chunks = (torch.cdist(chunk, real) <= radii for chunk in samples.split(CHUNK))
    return torch.cat([inside.any(dim=1) for inside in chunks])


def share_by_class(hits: Tensor, labels: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Return, by class name, the share of each class's images for which `hits` (N,) is True."""
    counts = torch.bincount(labels, minlength=len(names)).double()
    sums = torch.bincount(labels, weights=hits.double(), minlength=len(names))
    shares = sums / counts
    return {names[i]: shares[i].item() for i in range(len(names)) if counts[i]}
