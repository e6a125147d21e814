"""The reference that samples are compared with: features of real images, in one file.

Decided here: the file is an npz without pickled objects. It names its data set and its network by
checksum, so that a comparison with another data set or network is refused. It has the mean and
covariance of many images, for the Fréchet distance, and the features of a sample of these images,
for the other metrics. Mean and covariance may be ADM's published ones; the features are still from
our own network. Features of ImageNet take hours to days, so a killed run continues from the sums
that it saved last, and a file made from the same data, weights and settings is kept. Code is not
compared. Features and statistics have version numbers, raised when new code changes them.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.files import atomic_file
from fractal_model.data.loader import read_batch
from fractal_model.data.order import epoch_permutation
from fractal_model.data.prepared import PreparedSplit
from fractal_model.metrics.inception import InceptionExtractor
from fractal_model.metrics.npz import read_arrays
from fractal_model.metrics.statistics import (
    STATISTICS_VERSION,
    FeatureStatistics,
    RunningStatistics,
)

if TYPE_CHECKING:
    from fractal_model.metrics.dinov2 import DINOv2Extractor

FORMAT_VERSION = 2
OWN_IMAGES = "training images"
_BATCH = 50
_SAVE_SECONDS = 60.0
_OLD_RULE = re.compile(r"[0-9a-f]{64}")
"""Form of `made_from` in old reference files: a checksum of source code, which cannot be compared.
Such a file is kept if all other inputs agree."""
_UNREADABLE = (ValueError, KeyError, OSError, EOFError, zlib.error, zipfile.BadZipFile)

_NUMBERS = ("mean", "covariance", "features")
_TEXTS = ("source", "dataset", "dataset_checksum", "weights_checksum")

MadeFrom = dict[str, str | int]
"""Everything that decides the content of a reference. The reference file stores it as JSON."""


@dataclass(frozen=True)
class Reference:
    """Features of real images and their statistics, from Inception or DINOv2."""

    statistics: FeatureStatistics
    """Mean and covariance of the features of all images."""
    features: Tensor
    """Features of a sample of the images, (N, D) float32."""
    source: str
    """Origin of the statistics: `training images`, or the name of published statistics."""
    dataset: str
    dataset_checksum: str
    weights_checksum: str
    """Checksum of the weights of the network that extracted the features."""

    @property
    def checksum(self) -> str:
        """SHA-256 of features, statistics, source, data set and weights."""
        checksum = hashlib.sha256(self.features.numpy().tobytes())
        checksum.update(self.statistics.mean.tobytes())
        checksum.update(self.statistics.covariance.tobytes())
        checksum.update(f"{self.source} {self.dataset_checksum} {self.weights_checksum}".encode())
        return checksum.hexdigest()

    def require(self, *, dataset_checksum: str, weights_checksum: str) -> None:
        """Raise FractalError if this reference is of other images or of another network."""
        for name, checksum, expected in (
            ("data set", self.dataset_checksum, dataset_checksum),
            ("network", self.weights_checksum, weights_checksum),
        ):
            if checksum != expected:
                raise FractalError(
                    f"the reference features of {self.dataset} belong to another {name} "
                    f"({checksum[:16]}, expected {expected[:16]}): run `dvc repro` to remake them"
                )


@dataclass(frozen=True)
class PublishedStatistics:
    """Published mean and covariance of a data set's Inception features."""

    source: str
    """Name of the statistics, such as `ADM: adm_in64_stats.npz`."""
    mean: np.ndarray
    """Mean of the features, (2048,) float64."""
    covariance: np.ndarray
    """Covariance of the features, (2048, 2048) float64."""
    images: Tensor | None
    """Some images of the data set, (N, 3, H, W) uint8; None if the published file has none."""


def build_reference(
    split: PreparedSplit,
    inception: InceptionExtractor | DINOv2Extractor,
    file: Path,
    *,
    images: int,
    sample: int,
    published: PublishedStatistics | None = None,
    progress: Callable[[int], None] | None = None,
) -> Reference:
    """Write a reference to `file` and return it: the statistics of `images` images of the split,
    chosen at random but always the same, and the features of the first `sample` of them.

    With `published`, the file gets the published statistics instead, and the features are those of
    the published images if there are any. A file made from the same inputs is kept. `progress` is
    called with the number of images done. FractalError: the split has fewer than `images` images.
    """
    indices = choose_images(split, images)
    made_from = _describe_inputs(split, inception, images, sample, published)
    if _is_made_from(file, made_from):
        return load_reference(file)
    pictures = None if published is None else published.images
    if published is not None:
        indices = (indices if pictures is None else np.arange(images))[: made_from["rows"]]
    sums = file.with_name(f".{file.name}.sums.npz")
    extraction = _Extraction(sums, made_from)
    running = extraction.running
    if progress is not None:
        progress(running.count)  # images of an earlier process
    for start in range(running.count, len(indices), _BATCH):
        part = indices[start : start + _BATCH]
        batch = read_batch(split, part.tolist()).images if pictures is None else pictures[part]
        extraction.add(inception(batch).cpu(), sample)
        if progress is not None:
            progress(running.count)
    if published is None:
        statistics = running.statistics()
    else:
        statistics = FeatureStatistics(published.mean, published.covariance, 0)
    _save(
        file,
        made_from,
        format_version=FORMAT_VERSION,
        features=extraction.features().numpy(),
        mean=statistics.mean,
        covariance=statistics.covariance,
        count=statistics.count,
        source=made_from["source"],
        dataset=split.manifest.dataset,
        dataset_checksum=split.manifest.checksum,
        weights_source=inception.weights_source,
        weights_checksum=inception.weights_checksum,
        preprocessing=split.manifest.preprocessing,
    )
    sums.unlink(missing_ok=True)
    return load_reference(file)


class _Extraction:
    """Extraction in progress: sums over all features so far, and the features of the sample. Both
    are saved to `file` once a minute. If that file exists and was made from the same inputs, the
    extraction continues from it."""

    def __init__(self, file: Path, made_from: MadeFrom) -> None:
        self._file, self._made_from, self._saved = file, made_from, time.monotonic()
        self.running = RunningStatistics()
        self._sample: list[Tensor] = []
        if _is_made_from(file, made_from):
            with np.load(file, allow_pickle=False) as arrays:
                sums = {name: arrays[name] for name in ("shift", "sum", "products")}
                self.running = RunningStatistics(int(arrays["count"]), **sums)
                self._sample = [torch.from_numpy(arrays["features"])]

    def add(self, features: Tensor, sample: int) -> None:
        self._sample.append(features[: max(0, sample - self.running.count)])
        self.running.add(features)
        if time.monotonic() - self._saved >= _SAVE_SECONDS:
            sums = vars(self.running)
            _save(self._file, self._made_from, features=self.features().numpy(), **sums)
            self._saved = time.monotonic()

    def features(self) -> Tensor:
        return torch.cat(self._sample)


def _describe_inputs(
    split: PreparedSplit,
    inception: InceptionExtractor | DINOv2Extractor,
    images: int,
    sample: int,
    published: PublishedStatistics | None,
) -> MadeFrom:
    made_from: MadeFrom = {
        "format_version": FORMAT_VERSION,
        "features_version": inception.FEATURES_VERSION,
        "statistics_version": STATISTICS_VERSION,
        "batch": _BATCH,
        "split": split.name,
        "dataset_checksum": split.manifest.checksum,
        "weights_checksum": inception.weights_checksum,
        "source": OWN_IMAGES,
        "count": images,
        "rows": min(sample, images),
    }
    if published is not None:
        made_from |= {"source": published.source, "count": 0}
        made_from["statistics"] = _checksum(published.mean, published.covariance)
        if published.images is not None:
            made_from["images"] = _checksum(published.images.numpy())
            made_from["rows"] = min(sample, images, len(published.images))
    return made_from


def _checksum(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def _is_made_from(file: Path, made_from: MadeFrom) -> bool:
    """True if `file` exists, is undamaged and was made from the inputs `made_from`."""
    try:
        with zipfile.ZipFile(file) as archive:
            is_whole = archive.testzip() is None
        with np.load(file, allow_pickle=False) as arrays:
            return is_whole and _has_inputs(arrays, made_from)
    except _UNREADABLE:
        return False


def _has_inputs(arrays: Mapping[str, np.ndarray], made_from: MadeFrom) -> bool:
    text: str = arrays["made_from"].item()
    if not _OLD_RULE.fullmatch(text):
        return text == json.dumps(made_from)
    names = ("format_version", "dataset_checksum", "weights_checksum", "source", "count")
    stated = {name: arrays[name].item() for name in names}
    stated |= {"features_version": 1, "statistics_version": 1, "rows": len(arrays["features"])}
    if "statistics" in made_from:
        stated["statistics"] = _checksum(arrays["mean"], arrays["covariance"])
    return stated.items() <= made_from.items()


def _save(file: Path, made_from: MadeFrom, **arrays: np.ndarray | str | int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as partial:
        np.savez(partial, allow_pickle=False, made_from=json.dumps(made_from), **arrays)


def choose_images(split: PreparedSplit, images: int) -> np.ndarray:
    """Choose `images` images of a split at random, always the same ones. Return their indices in
    random order, int64 (images,). FractalError: the split has fewer images."""
    if images > len(split):
        raise FractalError(
            f"metrics.statistics_images is {images} for {split.manifest.dataset}, which has "
            f"{len(split)} training images: choose at most {len(split)}"
        )
    return epoch_permutation(0, 0, len(split))[:images]


def load_reference(file: Path) -> Reference:
    """Read a reference. FractalError: the file is missing or damaged, a number is not finite, or
    another version wrote it."""
    try:
        # The files are not compressed, so no array is larger than the file.
        names = (*_NUMBERS, *_TEXTS, "format_version", "count")
        arrays = read_arrays(file, dict.fromkeys(names, file.stat().st_size))
        if (version := int(arrays["format_version"])) != FORMAT_VERSION:
            raise ValueError(f"it has format version {version}, expected {FORMAT_VERSION}")
        _require_statistics(arrays)
        return Reference(
            FeatureStatistics(arrays["mean"], arrays["covariance"], int(arrays["count"])),
            torch.from_numpy(arrays["features"]),
            **{name: str(arrays[name].item()) for name in _TEXTS},
        )
    except FileNotFoundError as error:
        raise FractalError(f"the reference features {file} are missing: run `dvc repro`") from error
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise FractalError(
            f"the reference features {file} cannot be used ({one_line(error)}): run `dvc repro`"
        ) from error


def _require_statistics(arrays: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError unless mean (D,), covariance (D, D), features (N, D) hold finite numbers."""
    for name in _NUMBERS:
        if arrays[name].dtype.kind != "f":
            raise ValueError(f"{name} holds {arrays[name].dtype}, not real numbers")
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"NaN or infinite numbers in {name}")
    mean, covariance, features = (arrays[name] for name in _NUMBERS)
    width = mean.size
    if (mean.shape, covariance.shape) != ((width,), (width, width)) or (
        features.ndim != 2 or features.shape[1] != width or not len(features)
    ):
        shapes = ", ".join(f"{name} {arrays[name].shape}" for name in _NUMBERS)
        raise ValueError(f"{shapes} do not fit together")
