"""The reference that samples are compared with: Inception features of real images, in one file.

Decided here: an npz without pickled objects that names its data set and its network by checksum,
so that a comparison with the wrong one is refused.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fractal_model.data.loader import evaluation_batches
from fractal_model.data.order import epoch_permutation
from fractal_model.data.prepared import PreparedSplit
from fractal_model.errors import FractalError, one_line
from fractal_model.metrics.distances import FeatureStatistics
from fractal_model.metrics.inception import InceptionFeatures, extract_features


@dataclass(frozen=True)
class Reference:
    """Real images as the Inception network sees them."""

    features: Tensor
    """(N, 2048) float32, pool_3."""
    dataset: str
    dataset_checksum: str
    weights_checksum: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the features and of what they were made from and with."""
        content = hashlib.sha256(self.features.numpy().tobytes())
        content.update(f"{self.dataset_checksum} {self.weights_checksum}".encode())
        return content.hexdigest()

    def require(self, *, dataset_checksum: str, weights_checksum: str) -> None:
        """FractalError when this reference is of other images or of another network."""
        for what, ours, given in (
            ("data set", self.dataset_checksum, dataset_checksum),
            ("Inception weights", self.weights_checksum, weights_checksum),
        ):
            if ours != given:
                raise FractalError(
                    f"the reference features of {self.dataset} belong to another {what} "
                    f"({ours[:16]}, now {given[:16]}): run `dvc repro` to make them anew"
                )


def build_reference(
    split: PreparedSplit,
    inception: InceptionFeatures,
    file: Path,
    *,
    images: int,
    batch_size: int = 50,
    progress: Callable[[int], None] | None = None,
) -> Reference:
    """Features of `images` images of the split, a fixed random choice; written to `file`.

    FractalError when the split has fewer.
    """
    if images > len(split):
        raise FractalError(
            f"reference_images {images} asked of {split.manifest.dataset}, which has "
            f"{len(split)} training images: choose at most that"
        )
    chosen = set(epoch_permutation(0, 0, len(split))[:images].tolist())
    batches = (
        batch.images[torch.tensor([int(i) in chosen for i in batch.indices])]
        for batch in evaluation_batches(split, batch_size=batch_size)
    )
    features = extract_features((b for b in batches if len(b)), inception, progress)
    statistics = FeatureStatistics.from_features(features)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial.npz")
    np.savez(
        partial,
        features=features.numpy(),
        mean=statistics.mean,
        covariance=statistics.covariance,
        count=statistics.count,
        dataset=split.manifest.dataset,
        dataset_checksum=split.manifest.checksum,
        weights_checksum=inception.weights_checksum,
        preprocessing=split.manifest.preprocessing,
    )
    partial.replace(file)
    return load_reference(file)


def load_reference(file: Path) -> Reference:
    """FractalError: missing or damaged."""
    try:
        with np.load(file, allow_pickle=False) as content:
            return Reference(
                features=torch.from_numpy(content["features"]),
                dataset=str(content["dataset"]),
                dataset_checksum=str(content["dataset_checksum"]),
                weights_checksum=str(content["weights_checksum"]),
            )
    except FileNotFoundError as error:
        raise FractalError(f"the reference features {file} are missing: run `dvc repro`") from error
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise FractalError(
            f"the reference features {file} are damaged ({one_line(error)}): run `dvc repro`"
        ) from error
