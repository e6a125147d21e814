"""The samples of an evaluation and their features.

Decided here: the worker that samples a part also extracts its features. A part is stored on disk
with one row for each image: pixels, features and sampling seconds, all as bytes. The feature
networks always get batches of one size on the same number of threads. So the features do not depend
on how the work is divided, not even in their rounding.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fractal_model.common.errors import FractalError
from fractal_model.data.loader import read_batch
from fractal_model.data.prepared import PreparedSplit
from fractal_model.evaluation.protocol import ImageSource, Protocol
from fractal_model.evaluation.sample_set import SampleSet
from fractal_model.generation.sample_images import sample_images
from fractal_model.metrics.dinov2 import load_dinov2
from fractal_model.metrics.inception import load_inception
from fractal_model.metrics.reference import choose_images
from fractal_model.model.fractal import FractalModel
from fractal_model.parallel.parts import MapParts, StartWork, Work, map_in_this_process
from fractal_model.parallel.stored_parts import StoredParts

FEATURE_BATCH, FEATURE_THREADS = 8, 2
"""Number of images in each batch of a feature network, and number of CPU threads that compute it.
Both are fixed, because both affect how features are rounded."""
INCEPTION_WIDTH = 2048
HELD_OUT_IMAGES = 1000
"""Largest number of validation images whose features are extracted, which takes a minute on a CPU.
Their distances to the nearest training images are enough to find the 1 % quantile of these
distances. A sample below it is called unusually near."""
_SECONDS_BYTES = 8
Progress = Callable[[int], None]
"""Function that receives the number of images done so far."""
Network = Callable[[Tensor], Tensor]
"""Function that computes the features, float32 (n, D), of n images, uint8 (n, 3, S, S)."""


@dataclass(frozen=True)
class FeatureNetworks:
    """Where the weights of the feature networks are. Each worker loads the networks itself."""

    inception: str
    """Inception weights: `auto`, `download` or a path (see `load_inception`)."""
    dinov2: Path | None = None
    """File of the DINOv2 weights; None if FD-DINOv2 is not computed."""

    def load(self, device: torch.device, protocol: Protocol) -> list[Network]:
        """Load Inception and, if its weights are given, DINOv2. FractalError: weights are missing
        or damaged, or are not those of the protocol."""
        inception = load_inception(self.inception, device)
        _require_weights("Inception", inception.weights_checksum, protocol.network_checksum)
        if self.dinov2 is None:
            return [inception]
        dinov2 = load_dinov2(self.dinov2, device)
        _require_weights("DINOv2", dinov2.weights_checksum, protocol.dinov2_checksum)
        return [inception, dinov2]


def _require_weights(network: str, checksum: str, expected: str | None) -> None:
    """Raise FractalError if a worker's machine has other weights than those of the protocol."""
    if checksum != expected:
        raise FractalError(
            f"the {network} weights of this machine have the checksum {checksum[:16]}, the "
            f"protocol's have {(expected or 'none')[:16]}: give all machines the same file, named "
            f"under metrics in params.yaml"
        )


@dataclass(frozen=True)
class SamplesWithFeatures:
    """A set of N images with the features of each image."""

    images: SampleSet
    inception: Tensor
    """Inception features, (N, 2048) float32."""
    dinov2: Tensor | None
    """DINOv2 features, (N, D) float32; None without DINOv2 weights."""
    seconds_per_image: float | None
    """Mean number of seconds that a worker takes to sample one image, without extracting its
    features; None for images from files."""


@dataclass(eq=False)
class _StoredSamples:
    """A `SampleSet` whose images are read from the stored parts of an evaluation."""

    parts: StoredParts
    labels: Tensor
    side: int

    def images(self, numbers: Sequence[int]) -> Tensor:
        shape = (3, self.side, self.side)
        return self.parts.rows(numbers, 3 * self.side**2).unflatten(1, shape)


def draw_samples(
    model: FractalModel,
    protocol: Protocol,
    source: ImageSource,
    networks: FeatureNetworks,
    folder: Path,
    progress: Progress,
    *,
    largest: int,
    map_parts: MapParts = map_in_this_process,
) -> SamplesWithFeatures:
    """Sample the images that a protocol asks for, class by class, and extract their features. Image
    i is drawn with the seed `source.seed + i`. Parts are stored in `folder`, and parts from an
    earlier call with the same arguments are used again. At most `largest` images are sampled at a
    time; `progress` receives the number of images done. FractalError: see `FeatureNetworks.load`.
    """
    labels = torch.arange(protocol.classes).repeat_interleave(protocol.samples_per_class)
    seeds = range(source.seed, source.seed + len(labels))

    def map_with_features(
        start: StartWork, total: int, *, largest: int
    ) -> Iterator[tuple[range, Tensor]]:
        start = partial(_start_with_features, start, networks, protocol)
        return map_parts(start, total, largest=largest)

    stored = StoredParts(folder, map_with_features)
    side, done = model.config.image_size, 0
    after_pixels: list[Tensor] = [torch.empty(0)] * len(labels)
    parts = sample_images(model, source.sampling, labels, seeds, largest=largest, map_parts=stored)
    for part, rows in parts:
        for number, row in zip(part, rows[:, 3 * side**2 :].clone(), strict=True):
            after_pixels[number] = row
        done += len(part)
        progress(done)
    rows = torch.stack(after_pixels)
    features = _from_bytes(rows[:, :-_SECONDS_BYTES], torch.float32)
    seconds = _from_bytes(rows[:, -_SECONDS_BYTES:], torch.float64)
    inception, dinov2 = features[:, :INCEPTION_WIDTH], features[:, INCEPTION_WIDTH:]
    return SamplesWithFeatures(
        _StoredSamples(stored, labels, side),
        inception.clone(),
        dinov2.clone() if networks.dinov2 is not None else None,
        seconds.mean().item(),
    )


def extract_sample_features(
    samples: SampleSet,
    protocol: Protocol,
    networks: FeatureNetworks,
    device: torch.device,
    progress: Progress,
) -> SamplesWithFeatures:
    """Extract the features of images from files. FractalError: an image is damaged; see also
    `FeatureNetworks.load`."""
    loaded = networks.load(device, protocol)
    rows = []
    for numbers in torch.arange(len(samples.labels)).split(FEATURE_BATCH):
        images = samples.images(numbers.tolist())
        rows.append([extract_features(network, images) for network in loaded])
        progress(int(numbers[-1]) + 1)
    inception, *dinov2 = (torch.cat(features) for features in zip(*rows, strict=True))
    return SamplesWithFeatures(samples, inception, dinov2[0] if dinov2 else None, None)


def held_out_features(split: PreparedSplit, network: Network) -> Tensor:
    """Extract the features of a fixed random choice of at most `HELD_OUT_IMAGES` validation images.
    Return float32 (K, D) for K images."""
    indices = torch.tensor(choose_images(split, min(HELD_OUT_IMAGES, len(split))))
    batches = (read_batch(split, numbers.tolist()) for numbers in indices.split(FEATURE_BATCH))
    return torch.cat([extract_features(network, batch.images) for batch in batches])


def extract_features(network: Network, images: Tensor) -> Tensor:
    """Extract the features of n images, uint8 (n, 3, S, S). Return them on the CPU, float32 (n, D).
    The features of an image do not depend on its batch or its position in the batch."""
    rows, threads = [], torch.get_num_threads()
    torch.set_num_threads(FEATURE_THREADS)
    try:
        for batch in images.split(FEATURE_BATCH):
            padding = batch.new_zeros(FEATURE_BATCH - len(batch), *batch.shape[1:])
            rows.append(network(torch.cat([batch, padding]))[: len(batch)].cpu())
    finally:
        torch.set_num_threads(threads)
    return torch.cat(rows)


def _start_with_features(
    start: StartWork, networks: FeatureNetworks, protocol: Protocol, device: torch.device
) -> Work:
    sample, loaded = start(device), networks.load(device, protocol)

    def work(part: range) -> Tensor:
        started = time.monotonic()
        images = sample(part).cpu()
        seconds = (time.monotonic() - started) / len(part)
        columns = [images, *(extract_features(network, images) for network in loaded)]
        columns.append(torch.full((len(part), 1), seconds, dtype=torch.float64))
        flat = (column.flatten(1).contiguous() for column in columns)
        return torch.cat([column.view(torch.uint8) for column in flat], dim=1)

    return work


def _from_bytes(rows: Tensor, dtype: torch.dtype) -> Tensor:
    return rows.clone(memory_format=torch.contiguous_format).view(dtype)
