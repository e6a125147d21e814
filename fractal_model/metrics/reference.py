"""The reference that samples are compared with: Inception features of real images, in one file.

Decided here: an npz without pickled objects that names its data set and its networks by checksum,
so that a comparison with the wrong one is refused. It has the mean and covariance of many images,
for the Fréchet distance, and the features of a sample of them, for what needs single images. Mean
and covariance may be ADM's published ones; the sample is then of our own network.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fractal_model.data.order import epoch_permutation
from fractal_model.data.prepared import PreparedSplit
from fractal_model.errors import FractalError, one_line
from fractal_model.metrics.distances import FeatureStatistics, RunningStatistics
from fractal_model.metrics.inception import InceptionFeatures, extract_features

FORMAT_VERSION = 2
OWN_IMAGES = "training images"
_BATCH = 50


@dataclass(frozen=True)
class Reference:
    """Real images as the Inception network sees them."""

    statistics: FeatureStatistics
    """Of all the images, pool_3."""
    features: Tensor
    """(N, 2048) float32: of a sample of the images."""
    source: str
    """OWN_IMAGES, or whose published statistics they are."""
    dataset: str
    dataset_checksum: str
    weights_checksum: str
    """Of the network that made the features."""

    @property
    def checksum(self) -> str:
        """SHA-256 of the numbers and of what they were made from and with."""
        content = hashlib.sha256(self.features.numpy().tobytes())
        content.update(self.statistics.mean.tobytes())
        content.update(self.statistics.covariance.tobytes())
        content.update(f"{self.source} {self.dataset_checksum} {self.weights_checksum}".encode())
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


@dataclass(frozen=True)
class PublishedStatistics:
    """Mean and covariance that somebody else computed, and the images that came with them."""

    source: str
    mean: np.ndarray
    """float64 (2048,)"""
    covariance: np.ndarray
    """float64 (2048, 2048)"""
    images: Tensor | None
    """uint8 (N, 3, H, W)"""


def build_reference(
    split: PreparedSplit,
    inception: InceptionFeatures,
    file: Path,
    *,
    images: int,
    sample: int,
    published: PublishedStatistics | None = None,
    progress: Callable[[int], None] | None = None,
) -> Reference:
    """Statistics of `images` images of the split, a fixed random choice, and the features of the
    first `sample` of these; written to `file`. With `published`, its statistics, and the features
    of its images where it has some.

    FractalError when the split has fewer images.
    """
    chosen = chosen_images(split, images)
    kept, running = [], RunningStatistics()
    if published is not None:
        chosen = chosen[:sample]
    batches = _batches(split, chosen, published)
    for number, batch in enumerate(batches):
        features = extract_features([batch], inception)
        if published is None:
            running.add(features)
        kept += [features[: max(0, sample - number * _BATCH)]]
        if progress is not None:
            progress(number * _BATCH + len(batch))
    if published is None:
        statistics = running.statistics()
    else:
        statistics = FeatureStatistics(published.mean, published.covariance, 0)
    _write(file, statistics, torch.cat(kept), split, inception, published)
    return load_reference(file)


def chosen_images(split: PreparedSplit, images: int) -> np.ndarray:
    """Positions of `images` images, a fixed random choice in random order: int64 (images,).

    FractalError when the split has fewer.
    """
    if images > len(split):
        raise FractalError(
            f"metrics.statistics_images is {images} for {split.manifest.dataset}, which has "
            f"{len(split)} training images: choose at most that"
        )
    return epoch_permutation(0, 0, len(split))[:images]


def _batches(
    split: PreparedSplit, chosen: np.ndarray, published: PublishedStatistics | None
) -> Iterator[Tensor]:
    if published is not None and published.images is not None:
        yield from published.images[: len(chosen)].split(_BATCH)
        return
    for start in range(0, len(chosen), _BATCH):
        examples = split.__getitems__(chosen[start : start + _BATCH])
        yield torch.stack([example.image for example in examples])


def _write(
    file: Path,
    statistics: FeatureStatistics,
    features: Tensor,
    split: PreparedSplit,
    inception: InceptionFeatures,
    published: PublishedStatistics | None,
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial.npz")
    np.savez(
        partial,
        format_version=FORMAT_VERSION,
        features=features.numpy(),
        mean=statistics.mean,
        covariance=statistics.covariance,
        count=statistics.count,
        source=OWN_IMAGES if published is None else published.source,
        dataset=split.manifest.dataset,
        dataset_checksum=split.manifest.checksum,
        weights_source=inception.weights_source,
        weights_checksum=inception.weights_checksum,
        preprocessing=split.manifest.preprocessing,
    )
    partial.replace(file)


def load_reference(file: Path) -> Reference:
    """FractalError: missing, damaged or of another format version."""
    try:
        with np.load(file, allow_pickle=False) as content:
            if int(content["format_version"]) != FORMAT_VERSION:
                raise ValueError(f"format version {content['format_version']}")
            return Reference(
                statistics=FeatureStatistics(
                    content["mean"], content["covariance"], int(content["count"])
                ),
                features=torch.from_numpy(content["features"]),
                source=str(content["source"]),
                dataset=str(content["dataset"]),
                dataset_checksum=str(content["dataset_checksum"]),
                weights_checksum=str(content["weights_checksum"]),
            )
    except FileNotFoundError as error:
        raise FractalError(f"the reference features {file} are missing: run `dvc repro`") from error
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise FractalError(
            f"the reference features {file} are damaged ({one_line(error)}): run `dvc repro`"
        ) from error
