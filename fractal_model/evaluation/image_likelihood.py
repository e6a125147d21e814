"""Likelihood of images that the caller reads: from a data set, from files or from memory.

Decided here: an image's masks depend on the seed and on the image's number, so its bits do not
depend on the part in which they are computed.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from fractal_model.common.errors import FractalError
from fractal_model.common.strict import LARGEST_SEED
from fractal_model.config.validation import MOST_PASSES
from fractal_model.model.fractal import FractalModel
from fractal_model.model.likelihood import Likelihood, mask_seeds, pass_bits
from fractal_model.model.pixel_likelihood import pixel_bits
from fractal_model.parallel.parts import LARGEST_PART, MapParts, Work, map_in_this_process

ReadImages = Callable[[range], tuple[Tensor, Tensor, Sequence[int]]]
"""Function that reads the images at n places: images (n, 3, S, S) uint8, labels (n,) and the
numbers that decide the masks. It must be picklable if workers compute."""


def image_likelihood(
    model: FractalModel,
    read: ReadImages,
    count: int,
    progress: Callable[[int], None] = lambda done: None,
    *,
    passes: int,
    seed: int,
    largest: int = LARGEST_PART,
    map_parts: MapParts = map_in_this_process,
) -> Likelihood:
    """Measure the bits per dimension of the `count` images that `read` returns for the places 0 …
    count − 1.

    `passes` is the number of mask draws for each image in a MAR model; `seed` decides the masks. At
    most `largest` images are computed at a time; `progress` receives the number of images done.
    FractalError: `passes`, `largest` or `seed` is out of range.
    """
    _require_settings(passes, largest, seed)
    exact = model.config.is_autoregressive
    per_pass = torch.empty(count, 1 if exact else passes, dtype=torch.float64)
    _fill(per_pass, pass_bits, model, read, progress, passes, seed, largest, map_parts)
    return Likelihood(per_pass, exact)


def image_pixel_bits(
    model: FractalModel,
    read: ReadImages,
    count: int,
    progress: Callable[[int], None] = lambda done: None,
    *,
    passes: int,
    seed: int,
    largest: int = LARGEST_PART,
    map_parts: MapParts = map_in_this_process,
) -> Tensor:
    """Measure the bits per dimension of each pixel of `count` images, (N, S, S) float64. NaN: see
    `pixel_bits`. The arguments and errors are those of `image_likelihood`."""
    _require_settings(passes, largest, seed)
    side = model.config.image_size
    bits = torch.empty(count, side, side, dtype=torch.float64)
    _fill(bits, pixel_bits, model, read, progress, passes, seed, largest, map_parts)
    return bits


def _fill(
    results: Tensor,
    compute: Callable[..., Tensor],
    model: FractalModel,
    read: ReadImages,
    progress: Callable[[int], None],
    passes: int,
    seed: int,
    largest: int,
    map_parts: MapParts,
) -> None:
    """Write what `compute` returns for each image to `results`, (N, …)."""
    start, done = partial(start_bits, partial(compute, passes=passes), model, read, seed), 0
    for part, values in map_parts(start, len(results), largest=largest):
        results[part.start : part.stop] = values
        done += len(part)
        progress(done)


def _require_settings(passes: int, largest: int, seed: int) -> None:
    if not 1 <= passes <= MOST_PASSES or largest < 1 or not 0 <= seed <= LARGEST_SEED:
        raise FractalError(
            f"passes {passes}, batch size {largest} and seed {seed} given: passes must be "
            f"1 … {MOST_PASSES}, the batch size 1 or more, the seed 0 … {LARGEST_SEED}"
        )


def start_bits(
    compute: Callable[..., Tensor],
    model: FractalModel,
    read: ReadImages,
    seed: int,
    device: torch.device,
) -> Work:
    """Return a function that computes the bits of a part on `device`. `compute` is `pass_bits`,
    `pass_bits_by_term` or `pixel_bits`."""
    model = model.to(device)

    def work(part: range) -> Tensor:
        pixels, labels, numbers = read(part)
        seeds = mask_seeds(seed, numbers)
        return compute(model, pixels.to(device), seeds, labels=labels.to(device))

    return work
