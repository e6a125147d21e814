"""Likelihood in bits per dimension: exact for AR models, the any-order bound for MAR models.

The bound is the expected mean loss of the masked sub-patches, over a mask count uniform on 1 … T
and a random order, at every level. Decided here: the counts are stratified, for each patch over
the passes and within a pass over the patches of the image, which leaves each count uniform and
takes most of its variance away; the random numbers are the image's own, so the result does not
depend on batch or workers. No noise is added, and guiding pixels enter rounded to 8 bits and
weighted by their number: the result is a true bound.

Shapes: B images, P passes; level i has n patches an image, of T sub-patches each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fractal_model.config import LevelConfig, ModelConfig
from fractal_model.model.fractal import FractalModel, Rows, exact_guides
from fractal_model.model.losses import nats_per_value
from fractal_model.randomness import ImageNoise, patches_per_image, ranks, stream_seed

_STRATA_STREAM, _ORDER_STREAM, _PLACE_STREAM = 1, 2, 3


@dataclass(frozen=True)
class Likelihood:
    """Bits per dimension (per pixel and channel) of a set of images."""

    per_pass: Tensor
    """(N, P) float64; P is 1 where the likelihood is exact."""
    exact: bool

    @property
    def passes(self) -> int:
        return self.per_pass.shape[1]

    @property
    def per_image(self) -> Tensor:
        """(N,) float64."""
        return self.per_pass.mean(1)

    @property
    def mean(self) -> float:
        return self.per_image.mean().item()

    @property
    def standard_error(self) -> float:
        """Of the mean over images, the masks' share included; NaN for a single image."""
        return (self.per_image.std() / math.sqrt(len(self.per_image))).item()

    @property
    def monte_carlo_error(self) -> float:
        """Standard deviation of `mean` over mask seeds: 0 where exact, NaN from a single pass.

        From the differences of passes that follow each other, in which the image's own mask
        counts lie in neighbouring strata ("collapsed strata": Cochran, Sampling Techniques,
        section 5A.12). It is rather too large than too small: strata that differ add to it.
        """
        if self.exact:
            return 0.0
        if self.passes == 1:
            return math.nan
        squares = self.per_pass.diff(dim=1).square().sum(1)
        variance = squares / (2 * self.passes * (self.passes - 1))
        return variance.sum().sqrt().item() / len(variance)


def is_exact(config: ModelConfig) -> bool:
    """True where one pass gives the likelihood itself: no level is masked."""
    return all(level.generator == "ar" for level in config.levels)


def mask_seeds(seed: int, indices: Sequence[int]) -> list[int]:
    """The seeds of the images `indices` of a set. Sets of masks with different `seed` share none,
    as they would if it were the sum: their spread is the Monte Carlo error."""
    return [stream_seed(seed, int(index)) for index in indices]


@torch.no_grad()
def pass_bits(
    model: FractalModel, images: Tensor, seeds: Sequence[int], *, passes: int, labels: Tensor
) -> Tensor:
    """(B, 3, S, S) uint8 to (B, P) float64 bits per dimension of each pass; `labels` of NO_CLASS
    are unconditional, the published protocol. P is 1 where one pass is exact."""
    was_training = model.training
    model.eval()
    passes = 1 if is_exact(model.config) else passes
    nats = []
    for number in range(passes):
        masks = StratifiedMasks(model.config, seeds, number, passes, images.device)
        outcome = model(images, labels, masks=masks, guides=exact_guides)
        nats.append(nats_per_value(outcome, len(images)))
    model.train(was_training)
    return torch.stack(nats, dim=1) / math.log(2)


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
        # One generator fixes the strata of all passes, others the places and orders of this one.
        strata = [_generator(_STRATA_STREAM, seed) for seed in seeds]
        places = [_generator(_PLACE_STREAM, seed, number) for seed in seeds]
        self._counts = [
            torch.stack(
                [
                    _counts(s, p, config, level, number, passes)
                    for s, p in zip(strata, places, strict=True)
                ]
            ).to(device)
            for level in config.levels
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
    strata: torch.Generator,
    places: torch.Generator,
    config: ModelConfig,
    level: LevelConfig,
    number: int,
    passes: int,
) -> Tensor:
    """(n,) mask counts of an image's patches in pass `number`.

    A patch visits each of the `passes` bands of [0, 1) once over the passes, in a random order of
    its own (Latin hypercube sampling), so that the counts of two patches, of one level or of two,
    are independent; within a band the patches of the image lie evenly. The whole image, alone at
    its level, goes through the bands from the lowest to the highest, as the Monte Carlo error
    expects of it.
    """
    n = patches_per_image(config, level)
    visits = torch.rand(n, passes, generator=strata).argsort(dim=1)
    band = visits[:, number] if n > 1 else number
    place = torch.randperm(n, generator=places)
    offset = torch.rand(1, generator=places, dtype=torch.float64)
    uniform = (band + (place + offset) / n) / passes
    return (1 + (uniform * level.tokens).floor().long()).clamp(max=level.tokens)


def _generator(*key: int) -> torch.Generator:
    return torch.Generator().manual_seed(stream_seed(*key))
