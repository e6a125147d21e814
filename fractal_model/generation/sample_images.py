"""Sampling of many images, whole or from known pixels, in parts that fit into memory.

Decided here: each image has its own seed, so it is the same however the work is divided. The caller
passes a function (`MapParts`) that runs the parts, in this process or in several.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from fractal_model.config.sampling import SamplingConfig
from fractal_model.model.fractal import FractalModel
from fractal_model.parallel.parts import LARGEST_PART, MapParts, Work, map_in_this_process
from fractal_model.sampling.descent import Observer
from fractal_model.sampling.known import KnownPixels
from fractal_model.sampling.sampler import Sampler

PartObserver = Callable[[range], Observer]
"""Function that returns the observer of a part, given the part's image numbers."""


def sample_images(
    model: FractalModel,
    sampling: SamplingConfig,
    labels: Tensor,
    seeds: Sequence[int],
    *,
    known: KnownPixels | None = None,
    largest: int = LARGEST_PART,
    map_parts: MapParts = map_in_this_process,
    observe: PartObserver | None = None,
) -> Iterator[tuple[range, Tensor]]:
    """Sample one image for each of N labels and N seeds. Yield the images in parts, in any order:
    the range of a part's image numbers, and its n images (n, 3, S, S) uint8. A part has at most
    `largest` images. If `known` is given, all samples get the known pixels of this one image.
    `observe` is called during the work, in the process that does it."""
    start = partial(_start, model, sampling, labels, seeds, known, observe)
    return map_parts(start, len(labels), largest=largest)


def collect_images(
    model: FractalModel,
    sampling: SamplingConfig,
    labels: Tensor,
    seeds: Sequence[int],
    progress: Callable[[int], None] = lambda done: None,
    *,
    known: KnownPixels | None = None,
    largest: int = LARGEST_PART,
    map_parts: MapParts = map_in_this_process,
    observe: PartObserver | None = None,
) -> Tensor:
    """Sample images as `sample_images` does, and return them all in their order, (N, 3, S, S)
    uint8, on the CPU. `progress` receives the number of finished images."""
    side = model.config.image_size
    images, done = torch.empty(len(labels), 3, side, side, dtype=torch.uint8), 0
    for part, sampled in sample_images(
        model,
        sampling,
        labels,
        seeds,
        known=known,
        largest=largest,
        map_parts=map_parts,
        observe=observe,
    ):
        images[part.start : part.stop] = sampled
        done += len(part)
        progress(done)
    return images


def _start(
    model: FractalModel,
    sampling: SamplingConfig,
    labels: Tensor,
    seeds: Sequence[int],
    known: KnownPixels | None,
    observe: PartObserver | None,
    device: torch.device,
) -> Work:
    sampler = Sampler(model.to(device), sampling)

    def work(part: range) -> Tensor:
        places = slice(part.start, part.stop)
        repeated = None if known is None else known.repeat(len(part))
        watch = None if observe is None else observe(part)
        return sampler(labels[places], seeds[places], known=repeated, observe=watch)

    return work
