"""Many images from a model: sampled or completed, in parts that fit memory.

Decided here: an image's seed is its own, so how the work is cut decides nothing about the images;
who runs the parts is given as a `MapParts`.
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
    """(N,) classes and N seeds to parts of the N images, (n, 3, S, S) uint8, in any order; at
    most `largest` are made at a time. `known` is one image, of which a part is the same in all."""
    start = partial(_work, model, sampling, labels, seeds, known)
    return map_parts(start, len(labels), largest=largest)


def _work(
    model: FractalModel,
    sampling: SamplingConfig,
    labels: Tensor,
    seeds: Sequence[int],
    known: KnownPixels | None,
    device: torch.device,
) -> Work:
    sampler = Sampler(model.to(device), sampling)

    def work(part: range) -> Tensor:
        chosen = slice(part.start, part.stop)
        given = None if known is None else known.repeat(len(part))
        return sampler(labels[chosen], seeds[chosen], known=given)

    return work
