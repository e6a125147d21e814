"""scikit-learn's handwritten digits at their native 8 × 8: the data set that needs no download.

Decided here: the 17 grey values 0..16 become 0..255 by v -> round(255 v / 16). Neighbouring values
are then 15 or 16 apart, so round(16 p / 255) gives the original value exactly. All three channels
have the grey value. A pixel without ink is 0 (black), as in the source.
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from fractal_model.common.errors import FractalError
from fractal_model.config.data import DIGITS_IMAGES, digits_split_sizes
from fractal_model.data.manifest import Manifest
from fractal_model.data.writing import write_prepared

RESOLUTION = 8
CLASS_NAMES = tuple("0123456789")


def digits_splits(*, validation_images: int, seed: int) -> dict[str, list[tuple[np.ndarray, int]]]:
    """Return the splits `train` and `validation`: lists of pairs of an image,
    uint8 (8, 8, 3), and its label.

    The share of each class is about the same in both splits. The validation split has
    `validation_images` images, which `seed` chooses. A split keeps the order of scikit-learn.
    Raises FractalError when a split would have fewer images than there are classes, and for a seed
    that does not fit in 32 bits.
    """
    sizes = digits_split_sizes(validation_images)
    if not 0 <= seed < 2**32:
        raise FractalError(f"seed is {seed}, expected 0 to {2**32 - 1}")
    source = load_digits()
    values = source.images.astype(np.int64)
    grey = ((values * 255 + 8) // 16).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=-1)
    parts = train_test_split(
        np.arange(DIGITS_IMAGES),
        test_size=validation_images,
        stratify=source.target,
        random_state=seed,
    )
    return {
        name: [(images[i], int(source.target[i])) for i in np.sort(part)]
        for name, part in zip(sizes, parts, strict=True)
    }


def prepare_digits(folder: Path, *, validation_images: int, seed: int) -> Manifest:
    """Write the data set `digits` to `folder`. Equal arguments give equal bytes.
    Raises FractalError for arguments that `digits_splits` refuses."""
    splits = digits_splits(validation_images=validation_images, seed=seed)
    return write_prepared(
        folder,
        dataset="digits",
        source="scikit-learn load_digits (UCI optical recognition of handwritten digits, test)",
        preprocessing=(
            "digits version 1: grey 0..16 to round(255 v / 16), repeated in three channels; "
            f"{validation_images} validation images, stratified, seed {seed}"
        ),
        resolution=RESOLUTION,
        class_names=CLASS_NAMES,
        splits=splits,
    )
