"""The reference that samples are compared with: Inception features of real images, in one file.

Decided here: an npz without pickled objects that names its data set and its networks by checksum,
so that a comparison with the wrong one is refused. It has the mean and covariance of many images,
for the Fréchet distance, and the features of a sample of them, for what needs single images. Mean
and covariance may be ADM's published ones; the sample is then of our own network. Features of
ImageNet take hours to days: a killed run goes on where its sums were last saved, and a file
that was made of and with the same is kept.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fractal_model.common.errors import FractalError, one_line
from fractal_model.data.order import epoch_permutation
from fractal_model.data.prepared import PreparedSplit
from fractal_model.metrics import statistics as statistics_module
from fractal_model.metrics.inception import InceptionFeatures, extract_features
from fractal_model.metrics.statistics import FeatureStatistics, RunningStatistics

FORMAT_VERSION = 2
OWN_IMAGES = "training images"
_BATCH = 50
_SAVE_SECONDS = 60.0


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
            ("network", self.weights_checksum, weights_checksum),
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
    of its images where it has some. A file there that was made so already is kept.

    FractalError when the split has fewer images.
    """
    chosen = chosen_images(split, images)
    made_from = _made_from(split, inception, images, sample, published)
    if _says(file, made_from):
        return load_reference(file)
    if published is not None:
        chosen = chosen[:sample]
    sums = file.with_name(f".{file.name}.sums.npz")
    extraction = _Extraction.resumed(sums, made_from)
    for batch in _batches(split, chosen[extraction.done :], published, extraction.done):
        extraction.add(extract_features([batch], inception), sample)
        extraction.save_now_and_then(sums, made_from)
        if progress is not None:
            progress(extraction.done)
    if published is None:
        statistics = extraction.running.statistics()
    else:
        statistics = FeatureStatistics(published.mean, published.covariance, 0)
    _write(file, statistics, extraction.features(), split, inception, published, made_from)
    sums.unlink(missing_ok=True)
    return load_reference(file)


class _Extraction:
    """Features so far: sums of all, and the first ones themselves."""

    def __init__(self) -> None:
        self.done = 0
        """Images."""
        self.running = RunningStatistics()
        self._kept: list[Tensor] = []
        self._saved = time.monotonic()

    def add(self, features: Tensor, sample: int) -> None:
        self.running.add(features)
        self._kept.append(features[: max(0, sample - self.done)])
        self.done += len(features)

    def features(self) -> Tensor:
        return torch.cat(self._kept)

    def save_now_and_then(self, file: Path, made_from: str) -> None:
        if time.monotonic() - self._saved < _SAVE_SECONDS:
            return
        state = {f"running_{name}": value for name, value in self.running.state().items()}
        features = self.features().numpy()
        _save_whole(file, made_from=made_from, done=self.done, features=features, **state)
        self._saved = time.monotonic()

    @classmethod
    def resumed(cls, file: Path, made_from: str) -> _Extraction:
        """As it was saved, or from the start: nothing is there, or of something else."""
        extraction = cls()
        if _says(file, made_from):
            with np.load(file, allow_pickle=False) as content:
                state = {name: content[f"running_{name}"] for name in RunningStatistics.STATE}
                extraction.running = RunningStatistics.from_state(state)
                extraction._kept = [torch.from_numpy(content["features"])]
                extraction.done = int(content["done"])
        return extraction


def _made_from(
    split: PreparedSplit,
    inception: InceptionFeatures,
    images: int,
    sample: int,
    published: PublishedStatistics | None,
) -> str:
    """All that decides a reference, as one checksum."""
    content = hashlib.sha256()
    for code in (inspect.getfile(type(inception)), statistics_module.__file__):
        content.update(Path(code).read_bytes())
    if published is not None:
        content.update(published.mean.tobytes())
        content.update(published.covariance.tobytes())
        if published.images is not None:
            content.update(published.images.numpy().tobytes())
    source = OWN_IMAGES if published is None else published.source
    of = [split.manifest.checksum, split.name, inception.weights_checksum, source]
    content.update(json.dumps([FORMAT_VERSION, _BATCH, images, sample, *of]).encode())
    return content.hexdigest()


def _says(file: Path, made_from: str) -> bool:
    """Whether `file` is there, whole, and made from the same."""
    try:
        with zipfile.ZipFile(file) as archive:
            whole = archive.testzip() is None
        with np.load(file, allow_pickle=False) as content:
            return whole and str(content["made_from"]) == made_from
    except (ValueError, KeyError, OSError, EOFError, zlib.error, zipfile.BadZipFile):
        return False


def _save_whole(file: Path, **content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial.npz")
    np.savez(partial, **content)
    partial.replace(file)


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
    split: PreparedSplit, chosen: np.ndarray, published: PublishedStatistics | None, done: int
) -> Iterator[Tensor]:
    """Of the images `chosen`, or of as many published ones after the first `done`."""
    if published is not None and published.images is not None:
        if len(images := published.images[done : done + len(chosen)]):
            yield from images.split(_BATCH)
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
    made_from: str,
) -> None:
    _save_whole(
        file,
        made_from=made_from,
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


def load_reference(file: Path) -> Reference:
    """FractalError: missing, damaged, not finite, or of another format version."""
    try:
        with np.load(file, allow_pickle=False) as content:
            if int(content["format_version"]) != FORMAT_VERSION:
                raise ValueError(f"format version {content['format_version']}")
            for name in ("mean", "covariance", "features"):
                if not np.isfinite(content[name]).all():
                    raise ValueError(f"NaN or infinite numbers in {name}")
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
    except (ValueError, KeyError, OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise FractalError(
            f"the reference features {file} are damaged ({one_line(error)}): run `dvc repro`"
        ) from error
