"""Sampling of many images, whole or from known pixels, in parts that fit into memory.

Decided here: each image has its own seed, so it is the same however the work is divided. The caller
passes a function (`MapParts`) that runs the parts, in this process or in several.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from fractal_model.config.sampling import SamplingConfig
from fractal_model.model.fractal import FractalModel
from fractal_model.parallel.parts import LARGEST_PART, MapParts, Work, map_in_this_process
from fractal_model.sampling.known import KnownPixels
from fractal_model.sampling.sampler import Sampler


def sample_images(
    model: FractalModel,
    sampling: SamplingConfig,
    labels: Tensor,
    seeds: Sequence[int],
    *,
    known: KnownPixels | None = None,
    largest: int = LARGEST_PART,
    map_parts: MapParts = map_in_this_process,
) -> Iterator[tuple[range, Tensor]]:
    """Sample one image for each of N labels and N seeds. Yield the images in parts, in any order:
    the range of a part's image numbers, and its n images (n, 3, S, S) uint8. A part has at most
    `largest` images. If `known` is given, all samples get the known pixels of this one image."""
    start = partial(_start, model, sampling, labels, seeds, known)
    return map_parts(start, len(labels), largest=largest)


def _start(
    model: FractalModel,
    sampling: SamplingConfig,
    labels: Tensor,
    seeds: Sequence[int],
    known: KnownPixels | None,
    device: torch.device,
) -> Work:
    sampler = Sampler(model.to(device), sampling)

    def work(part: range) -> Tensor:
        places = slice(part.start, part.stop)
        repeated = None if known is None else known.repeat(len(part))
        return sampler(labels[places], seeds[places], known=repeated)

    return work
