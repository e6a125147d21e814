"""Likelihood in bits per dimension: exact for AR models, the any-order bound for MAR models.

The bound is the expected mean loss of the masked sub-patches, over a mask count uniform on 1 … T
and a random order, at every level. Decided here: the counts are stratified, for each patch over
the passes and within a pass over the patches of the image, which leaves each count uniform and
takes most of its variance away; the random numbers are the image's own, so the result does not
depend on batch or workers. No noise is added, and guiding pixels enter rounded to 8 bits and
weighted by their number: the result is a true bound.

Shapes: B images; level i has n patches an image, of T sub-patches each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fractal_model.config import ModelConfig
from fractal_model.model.fractal import NO_CLASS, FractalModel, Rows, exact_guides
from fractal_model.model.losses import nats_per_value
from fractal_model.randomness import ImageNoise, patches_per_image, ranks, stream_seed

_STRATA_STREAM, _ORDER_STREAM = 1, 2


@dataclass(frozen=True)
class Likelihood:
    """Bits per dimension (per pixel and channel) of a set of images."""

    per_image: Tensor
    """(N,) float64, averaged over the passes."""
    passes: int

    @property
    def mean(self) -> float:
        return self.per_image.mean().item()

    @property
    def standard_error(self) -> float:
        """Of the mean over images; NaN for a single image."""
        return (self.per_image.std() / math.sqrt(len(self.per_image))).item()


def is_exact(config: ModelConfig) -> bool:
    """True where one pass gives the likelihood itself: no level is masked."""
    return all(level.generator == "ar" for level in config.levels)


@torch.no_grad()
def image_bits(
    model: FractalModel, images: Tensor, seeds: Sequence[int], *, passes: int, labels: Tensor
) -> Tensor:
    """(B, 3, S, S) uint8 to (B,) float64 bits per dimension; `labels` of NO_CLASS are
    unconditional, the published protocol."""
    was_training = model.training
    model.eval()
    passes = 1 if is_exact(model.config) else passes
    total = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    for number in range(passes):
        masks = StratifiedMasks(model.config, seeds, number, passes, images.device)
        outcome = model(images, labels, masks=masks, guides=exact_guides)
        total += nats_per_value(outcome, len(images))
    model.train(was_training)
    return total / passes / math.log(2)


def likelihood(
    model: FractalModel,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    *,
    passes: int,
    seed: int,
    conditional: bool = False,
) -> Likelihood:
    """Of batches (images, labels, indices); image `index` has the random numbers of its own."""
    bits = []
    for images, labels, indices in batches:
        if not conditional:
            labels = torch.full_like(labels, NO_CLASS)
        seeds = [seed + int(index) for index in indices]
        bits.append(image_bits(model, images, seeds, passes=passes, labels=labels).cpu())
    return Likelihood(torch.cat(bits), 1 if is_exact(model.config) else passes)


class StratifiedMasks:
    """Masks of one pass of the bound, a `MaskSource`."""

    def __init__(
        self,
        config: ModelConfig,
        seeds: Sequence[int],
        number: int,
        passes: int,
        device: torch.device,
    ) -> None:
        self._config = config
        # One generator fixes the strata of all passes, another the orders of this one.
        strata = [
            torch.Generator().manual_seed(stream_seed(_STRATA_STREAM, seed)) for seed in seeds
        ]
        self._counts = [
            torch.stack([_counts(g, config, i, number, passes) for g in strata]).to(device)
            for i in range(len(config.levels))
        ]
        order_seeds = [stream_seed(_ORDER_STREAM, seed, number) for seed in seeds]
        self._orders = ImageNoise.draw(order_seeds, config, device).orders

    def __call__(self, level: int, rows: Rows) -> Tensor:
        """(R, T) bool, `count` true in each row."""
        size = self._config.levels[level].patch_size
        index = rows.index(self._config.image_size, size)
        rank = ranks(self._orders[level][rows.image, index])
        return rank < self._counts[level][rows.image, index][:, None]


def _counts(
    generator: torch.Generator, config: ModelConfig, level: int, number: int, passes: int
) -> Tensor:
    """(n,) mask counts of an image's patches in pass `number`.

    A patch visits each of the `passes` bands of [0, 1) once over the passes; within a band the
    patches of the image lie evenly. Each patch's number stays uniform on [0, 1).
    """
    n = patches_per_image(config, config.levels[level])
    offset = torch.rand(1, generator=generator, dtype=torch.float64)
    place = torch.randperm(n, generator=generator)
    first_band = torch.randint(passes, (n,), generator=generator)
    band = (first_band + number) % passes
    uniform = (band + (place + offset) / n) / passes
    tokens = config.levels[level].tokens
    return (1 + (uniform * tokens).floor().long()).clamp(max=tokens)
