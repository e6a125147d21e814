"""Agreement of samples with their classes, for images too small or simple for Inception."""

import numpy as np
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from fractal_model.common.errors import FractalError


def nearest_neighbour_agreement(
    samples: Tensor,
    labels: Tensor,
    reference: Tensor,
    reference_labels: Tensor,
    *,
    neighbours: int = 3,
) -> float:
    """Return the share, in [0, 1], of samples that agree with their class. A sample agrees if its
    class is the most frequent one among its `neighbours` nearest real images.

    The `samples`, uint8 (N, 3, H, W), were drawn for the classes `labels` (N,). The real images are
    `reference`, uint8 (M, 3, H, W), with the classes `reference_labels` (M,). The nearest images
    are those with the smallest Euclidean distance between pixels.
    FractalError: no samples, unequal shapes or counts, or fewer than `neighbours` real images.
    """
    if samples.shape[1:] != reference.shape[1:]:
        raise FractalError(
            f"samples: found images of {tuple(samples.shape[1:])}, expected the reference's "
            f"{tuple(reference.shape[1:])}; use images of the same data set"
        )
    _require_counts("samples", samples, labels, at_least=1)
    _require_counts("reference", reference, reference_labels, at_least=max(neighbours, 1))
    if neighbours < 1:
        raise FractalError(f"neighbours: found {neighbours}, expected at least 1; raise it")
    classifier = KNeighborsClassifier(n_neighbors=neighbours)
    classifier.fit(_rows(reference), reference_labels.cpu().numpy())
    return float(np.mean(classifier.predict(_rows(samples)) == labels.cpu().numpy()))


def _rows(images: Tensor) -> np.ndarray:
    """Flatten images (N, 3, H, W) to (N, 3HW), as float32 because uint8 differences wrap around."""
    return images.flatten(1).float().cpu().numpy()


def _require_counts(name: str, images: Tensor, labels: Tensor, *, at_least: int) -> None:
    if labels.shape != images.shape[:1]:
        raise FractalError(
            f"{name}: found {len(images)} images and labels of shape {tuple(labels.shape)}, "
            "expected one label for each image; give as many labels as images"
        )
    if len(images) < at_least:
        raise FractalError(
            f"{name}: the number of images is {len(images)}, expected {at_least} or more; add some"
        )
