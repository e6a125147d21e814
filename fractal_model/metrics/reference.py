"""The reference that samples are compared with: Inception features of real images, in one file.

Decided here: an npz without pickled objects that names its data set and its networks by checksum,
so that a comparison with the wrong one is refused. It has the mean and covariance of many images,
for the Fréchet distance, and the features of a sample of them, for what needs single images. Mean
and covariance may be ADM's published ones; the sample is then of our own network. Features of
ImageNet take hours to days: a killed run goes on where its sums were last saved, and a file that
was made from the same is kept. Code is not compared: what computes features or statistics has a
version, which is raised when its numbers change.
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
"""`made_from` of older files: a checksum that covers source code, which cannot be compared. Such a
file was made by the first versions; it is kept where all that it states beside this agrees."""
_UNREADABLE = (ValueError, KeyError, OSError, EOFError, zlib.error, zipfile.BadZipFile)

_NUMBERS = ("mean", "covariance", "features")
_TEXTS = ("source", "dataset", "dataset_checksum", "weights_checksum")

MadeFrom = dict[str, str | int]
"""All that decides the numbers of a reference; the file states it as JSON."""


@dataclass(frozen=True)
class Reference:
    """Real images as the Inception network sees them."""

    statistics: FeatureStatistics
    """Mean and covariance of the pool_3 features of all the images."""
    features: Tensor
    """(N, 2048) float32: the features of a sample of the images."""
    source: str
    """OWN_IMAGES, or whose published statistics these are."""
    dataset: str
    dataset_checksum: str
    weights_checksum: str
    """The weights of the network that made the features."""

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
        for name, ours, expected in (
            ("data set", self.dataset_checksum, dataset_checksum),
            ("network", self.weights_checksum, weights_checksum),
        ):
            if ours != expected:
                raise FractalError(
                    f"the reference features of {self.dataset} belong to another {name} "
                    f"({ours[:16]}, now {expected[:16]}): run `dvc repro` to make them anew"
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
    inception: InceptionExtractor | DINOv2Extractor,
    file: Path,
    *,
    images: int,
    sample: int,
    published: PublishedStatistics | None = None,
    progress: Callable[[int], None] | None = None,
) -> Reference:
    """Write to `file` the statistics of `images` images of the split, a fixed random choice, and
    the features of the first `sample` of these. With `published`, its statistics take their place,
    and the features are of its images where it has some. A file made from the same is kept.

    FractalError: the split has fewer images.
    """
    chosen = choose_images(split, images)
    made_from = _made_from(split, inception, images, sample, published)
    if _is_made_from(file, made_from):
        return load_reference(file)
    pictures = None if published is None else published.images
    if published is not None:
        chosen = (chosen if pictures is None else np.arange(images))[: made_from["rows"]]
    sums = file.with_name(f".{file.name}.sums.npz")
    extraction = _Extraction(sums, made_from)
    running = extraction.running
    if progress is not None:
        progress(running.count)  # kept by an earlier process
    for start in range(running.count, len(chosen), _BATCH):
        part = chosen[start : start + _BATCH]
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
    """The features so far: sums of all, and the first ones themselves. They are saved to `file` now
    and then, and begin with what it keeps, where that was made from the same."""

    def __init__(self, file: Path, made_from: MadeFrom) -> None:
        self._file, self._made_from, self._saved = file, made_from, time.monotonic()
        self.running = RunningStatistics()
        self._kept: list[Tensor] = []
        if _is_made_from(file, made_from):
            with np.load(file, allow_pickle=False) as content:
                sums = {name: content[name] for name in ("shift", "sum", "products")}
                self.running = RunningStatistics(int(content["count"]), **sums)
                self._kept = [torch.from_numpy(content["features"])]

    def add(self, features: Tensor, sample: int) -> None:
        self._kept.append(features[: max(0, sample - self.running.count)])
        self.running.add(features)
        if time.monotonic() - self._saved >= _SAVE_SECONDS:
            sums = vars(self.running)
            _save(self._file, self._made_from, features=self.features().numpy(), **sums)
            self._saved = time.monotonic()

    def features(self) -> Tensor:
        return torch.cat(self._kept)


def _made_from(
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
    """Whether `file` is there, whole, and made from the same."""
    try:
        with zipfile.ZipFile(file) as archive:
            whole = archive.testzip() is None
        with np.load(file, allow_pickle=False) as content:
            return whole and _agrees(content, made_from)
    except _UNREADABLE:
        return False


def _agrees(content: Mapping[str, np.ndarray], made_from: MadeFrom) -> bool:
    text: str = content["made_from"].item()
    if not _OLD_RULE.fullmatch(text):
        return text == json.dumps(made_from)
    names = ("format_version", "dataset_checksum", "weights_checksum", "source", "count")
    stated = {name: content[name].item() for name in names}
    stated |= {"features_version": 1, "statistics_version": 1, "rows": len(content["features"])}
    if "statistics" in made_from:
        stated["statistics"] = _checksum(content["mean"], content["covariance"])
    return stated.items() <= made_from.items()


def _save(file: Path, made_from: MadeFrom, **content: np.ndarray | str | int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as partial:
        np.savez(partial, allow_pickle=False, made_from=json.dumps(made_from), **content)


def choose_images(split: PreparedSplit, images: int) -> np.ndarray:
    """Positions of `images` images, a fixed random choice in random order: int64 (images,).

    FractalError when the split has fewer.
    """
    if images > len(split):
        raise FractalError(
            f"metrics.statistics_images is {images} for {split.manifest.dataset}, which has "
            f"{len(split)} training images: choose at most that"
        )
    return epoch_permutation(0, 0, len(split))[:images]


def load_reference(file: Path) -> Reference:
    """Read a reference. FractalError: missing, damaged, not finite, of another format version."""
    try:
        content = read_arrays(file, _most_bytes(file))
        if int(content["format_version"]) != FORMAT_VERSION:
            raise ValueError(f"format version {content['format_version']}")
        _require_statistics(content)
        return Reference(
            statistics=FeatureStatistics(
                content["mean"], content["covariance"], int(content["count"])
            ),
            features=torch.from_numpy(content["features"]),
            **{name: str(content[name].item()) for name in _TEXTS},
        )
    except FileNotFoundError as error:
        raise FractalError(f"the reference features {file} are missing: run `dvc repro`") from error
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise FractalError(
            f"the reference features {file} are damaged ({one_line(error)}): run `dvc repro`"
        ) from error


def _most_bytes(file: Path) -> dict[str, int]:
    """Our own files are not compressed: no array is larger than the file."""
    return dict.fromkeys((*_NUMBERS, *_TEXTS, "format_version", "count"), file.stat().st_size)


def _require_statistics(content: Mapping[str, np.ndarray]) -> None:
    """ValueError: not mean (D,), covariance (D, D) and features (N, D), real and finite."""
    for name in _NUMBERS:
        if content[name].dtype.kind != "f":
            raise ValueError(f"{name} holds {content[name].dtype}, not real numbers")
        if not np.isfinite(content[name]).all():
            raise ValueError(f"NaN or infinite numbers in {name}")
    mean, covariance, features = (content[name] for name in _NUMBERS)
    width = mean.size
    if (mean.shape, covariance.shape) != ((width,), (width, width)) or (
        features.ndim != 2 or features.shape[1] != width or not len(features)
    ):
        shapes = ", ".join(f"{name} {content[name].shape}" for name in _NUMBERS)
        raise ValueError(f"{shapes} do not fit together")
