"""Builds prepared data sets from their sources; the stages of `dvc.yaml` call these functions."""

from __future__ import annotations

from pathlib import Path

from fractal_model.data import digits
from fractal_model.data.manifest import Manifest
from fractal_model.data.writing import write_prepared


def prepare_digits(folder: Path, *, validation_images: int, seed: int) -> Manifest:
    """Writes `digits` to `folder`; a second run gives the same bytes.

    Raises FractalError when `validation_images` leaves a split without every class.
    """
    splits = digits.digits_splits(validation_images=validation_images, seed=seed)
    return write_prepared(
        folder,
        dataset="digits",
        source="scikit-learn load_digits (UCI optical recognition of handwritten digits, test)",
        preprocessing=(
            "digits version 1: grey 0..16 to round(255 v / 16), repeated in three channels; "
            f"{validation_images} validation images, stratified, seed {seed}"
        ),
        resolution=digits.RESOLUTION,
        class_names=digits.CLASS_NAMES,
        splits=splits,
    )
