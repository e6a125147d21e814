"""The images that a training sees and those that it is measured on, with or without a holdout.

Decided here: with `holdout`, a share of the training images is left out of training and measured in
place of the validation images, so that settings can be tuned without looking at the latter. Which
images these are depends on the data set alone, not on the seed of a training.
"""

from pathlib import Path

import numpy as np

from fractal_model.data.manifest import Manifest
from fractal_model.data.order import epoch_permutation
from fractal_model.data.prepared import PreparedSplit, open_prepared

_SEED = 28
"""Seed of the choice. It is no seed of a training that people usually take."""


def open_training_images(place: Path | str, holdout: float) -> PreparedSplit:
    """Open the images that a training with this `holdout` sees: the split `train` without the share
    `holdout` (0 … 1) of it. FractalError: see `open_prepared`."""
    split = open_prepared(place, "train")
    return split.select(_divide(len(split), holdout)[0]) if holdout else split


def open_held_out_images(place: Path | str, holdout: float) -> PreparedSplit:
    """Open the images on which a training with this `holdout` is measured: that share of the split
    `train`, or with 0 the split `validation`. FractalError: see `open_prepared`."""
    if not holdout:
        return open_prepared(place, "validation")
    split = open_prepared(place, "train")
    return split.select(_divide(len(split), holdout)[1])


def count_training_images(manifest: Manifest, holdout: float) -> int:
    """Return the number of images that a training with this `holdout` sees."""
    return remaining_images(manifest.splits["train"].images, holdout)


def remaining_images(images: int, holdout: float) -> int:
    """Return how many of `images` training images are left without the share `holdout`, which has
    one image at least."""
    return images - max(1, round(images * holdout)) if holdout else images


def _divide(images: int, holdout: float) -> tuple[np.ndarray, np.ndarray]:
    """Divide the positions of `images` images into those of training and the held-out ones, each
    in rising order, int64."""
    order, count = epoch_permutation(_SEED, 0, images), remaining_images(images, holdout)
    return np.sort(order[:count]), np.sort(order[count:])
