"""Prepare a data set of your own: 64 × 64 crops of two photographs.

The photographs come with scikit-learn. Training crops come from their left three quarters and
validation crops from the rest, so the two splits share no pixel.

    python examples/photos64/prepare.py
    python -m flows.train --size photos-64 --params examples/photos64/params.yaml
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from fractal_model.common.console import say
from fractal_model.config.params import load_params
from fractal_model.data.writing import write_prepared

SIDE, SEED = 64, 0
CROPS = {"train": 1000, "validation": 50}
"""Number of crops of each photograph, by split."""
CLASS_NAMES = ("temple", "flower")


def draw_crops(photos: list[np.ndarray], count: int, seed: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield `count` crops of each photograph, uint8 (64, 64, 3), and the photograph's number."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        for label, photograph in enumerate(photos):
            top, left = (random.integers(length - SIDE + 1) for length in photograph.shape[:2])
            yield photograph[top : top + SIDE, left : left + SIDE], label


def main() -> None:
    params = load_params(Path(__file__).with_name("params.yaml"))
    halved = [np.asarray(Image.fromarray(image).reduce(2)) for image in load_sample_images().images]
    border = halved[0].shape[1] * 3 // 4
    parts = {
        "train": [image[:, :border] for image in halved],
        "validation": [image[:, border:] for image in halved],
    }
    manifest = write_prepared(
        params.dataset_folder("photos64"),
        dataset="photos64",
        source="scikit-learn load_sample_images: china.jpg, flower.jpg",
        preprocessing=f"halved with a box filter; random {SIDE} px crops, seed {SEED}",
        resolution=SIDE,
        class_names=CLASS_NAMES,
        splits={
            name: draw_crops(images, CROPS[name], SEED + number)
            for number, (name, images) in enumerate(parts.items())
        },
    )
    counts = ", ".join(f"{record.images} {name}" for name, record in manifest.splits.items())
    say(f"photos64: {counts} images of {manifest.resolution} px")


if __name__ == "__main__":
    main()
