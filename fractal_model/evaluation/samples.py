"""The images of an evaluation and what the feature networks see in them.

Decided here: whoever samples a part extracts its features too, while other parts are sampled, and
a part is kept on the disk as one row an image: pixels, features, seconds, all as bytes. The
networks always see batches of one size on the same number of threads, so that how the work was cut
does not even change how a feature is rounded.
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
INCEPTION_WIDTH = 2048
HELD_OUT_IMAGES = 1000
"""Enough for a quantile of one in a hundred; a minute on a processor."""
_SECONDS_BYTES = 8
Progress = Callable[[int], None]
"""Called with the number of images done so far."""
Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FeatureNetworks:
    """Where the networks' weights are; each worker loads them itself."""

    inception: str
    """As metrics.inception_weights in params.yaml."""
    dinov2: Path | None = None

    def load(self, device: torch.device, protocol: Protocol) -> list[Network]:
        """Inception, and DINOv2 where there are weights. FractalError: missing, damaged, or not
        the protocol's."""
        inception = load_inception(self.inception, device)
        _require_weights("Inception", inception.weights_checksum, protocol.network_checksum)
        if self.dinov2 is None:
            return [inception]
        dinov2 = load_dinov2(self.dinov2, device)
        _require_weights("DINOv2", dinov2.weights_checksum, protocol.dinov2_checksum)
        return [inception, dinov2]


def _require_weights(network: str, found: str, expected: str | None) -> None:
    """A worker on another machine may find others there than the protocol was made with."""
    if found != expected:
        raise FractalError(
            f"the {network} weights of this machine are {found[:16]}, the protocol's are "
            f"{(expected or 'none')[:16]}: give all machines the same file, see metrics in "
            f"params.yaml"
        )


@dataclass(frozen=True)
class SamplesWithFeatures:
    """A set of images with their features."""

    images: SampleSet
    inception: Tensor
    """(N, 2048) float32"""
    dinov2: Tensor | None
    """(N, D) float32"""
    seconds_per_image: float | None
    """Of one worker, for sampling alone; None for images that came as files."""


@dataclass(eq=False)
class _Drawn:
    """`SampleSet` of images in kept parts."""

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
    """The balanced set of a protocol, in class order; image i has the seed `source.seed` + i.

    What an equal call has left in `folder` is kept. FractalError: see `sample_images`, and
    `FeatureNetworks.load`.
    """
    labels = torch.arange(protocol.classes).repeat_interleave(protocol.samples_per_class)
    seeds = range(source.seed, source.seed + len(labels))

    def map_with_features(
        start: StartWork, total: int, *, largest: int
    ) -> Iterator[tuple[range, Tensor]]:
        return map_parts(partial(_see, start, networks, protocol), total, largest=largest)

    kept = StoredParts(folder, map_with_features)
    side, done = model.config.image_size, 0
    seen: list[Tensor] = [torch.empty(0)] * len(labels)
    parts = sample_images(model, source.sampling, labels, seeds, largest=largest, map_parts=kept)
    for part, rows in parts:
        for number, row in zip(part, rows[:, 3 * side**2 :].clone(), strict=True):
            seen[number] = row
        done += len(part)
        progress(done)
    rows = torch.stack(seen)
    features = _from_bytes(rows[:, :-_SECONDS_BYTES], torch.float32)
    seconds = _from_bytes(rows[:, -_SECONDS_BYTES:], torch.float64)
    inception, dinov2 = features[:, :INCEPTION_WIDTH], features[:, INCEPTION_WIDTH:]
    return SamplesWithFeatures(
        _Drawn(kept, labels, side),
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
    """The same of images that came as files. FractalError: one is damaged; see
    `FeatureNetworks.load`."""
    loaded = networks.load(device, protocol)
    rows = []
    for numbers in torch.arange(len(samples.labels)).split(FEATURE_BATCH):
        images = samples.images(numbers.tolist())
        rows.append([extract(network, images) for network in loaded])
        progress(int(numbers[-1]) + 1)
    inception, *dinov2 = (torch.cat(features) for features in zip(*rows, strict=True))
    return SamplesWithFeatures(samples, inception, dinov2[0] if dinov2 else None, None)


def held_out_features(split: PreparedSplit, network: Network) -> Tensor:
    """(K, D) float32 of validation images, a fixed random choice of at most `HELD_OUT_IMAGES`."""
    chosen = torch.tensor(choose_images(split, min(HELD_OUT_IMAGES, len(split))))
    batches = (read_batch(split, numbers.tolist()) for numbers in chosen.split(FEATURE_BATCH))
    return torch.cat([extract(network, batch.images) for batch in batches])


def extract(network: Network, images: Tensor) -> Tensor:
    """uint8 (n, 3, S, S) to (n, D) float32 on the CPU, the same for any n and order."""
    rows, threads = [], torch.get_num_threads()
    torch.set_num_threads(FEATURE_THREADS)
    try:
        for batch in images.split(FEATURE_BATCH):
            empty = batch.new_zeros(FEATURE_BATCH - len(batch), *batch.shape[1:])
            rows.append(network(torch.cat([batch, empty]))[: len(batch)].cpu())
    finally:
        torch.set_num_threads(threads)
    return torch.cat(rows)


def _see(
    start: StartWork, networks: FeatureNetworks, protocol: Protocol, device: torch.device
) -> Work:
    sample, loaded = start(device), networks.load(device, protocol)

    def work(part: range) -> Tensor:
        started = time.monotonic()
        images = sample(part).cpu()
        seconds = (time.monotonic() - started) / len(part)
        columns = [images, *(extract(network, images) for network in loaded)]
        columns.append(torch.full((len(part), 1), seconds, dtype=torch.float64))
        flat = (column.flatten(1).contiguous() for column in columns)
        return torch.cat([column.view(torch.uint8) for column in flat], dim=1)

    return work


def _from_bytes(rows: Tensor, dtype: torch.dtype) -> Tensor:
    return rows.clone(memory_format=torch.contiguous_format).view(dtype)
