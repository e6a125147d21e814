"""Likelihood in bits per dimension: exact for AR models, the any-order bound for MAR models.

The bound is the expected mean loss of the masked sub-patches, over a mask count uniform on 1 … T
and a random order, at every level. Decided here: each mask alone has a uniform count and a
uniformly random set of that size, independent of the masks above it, so the estimate is unbiased.
Over the passes of an image the counts are stratified, and the sets are chosen so that all
sub-patches weigh about the same, which removes most of the variance. The random numbers are the
image's own, so the result does not depend on batch or workers. No noise is added, and guiding
pixels enter rounded to 8 bits and weighted by their number: the result is a true bound.

Shapes: B images, P passes; level i has n patches an image, of T sub-patches each.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fractal_model.common.memory import keep_freed_memory
from fractal_model.config.model import ModelConfig
from fractal_model.model.fractal import FractalModel, MaskSource, Rows, exact_guides
from fractal_model.model.losses import nats_by_part
from fractal_model.model.randomness import patches_per_image, ranks, stream_seed


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
        """Standard error of the mean over images, the masks' share included; NaN for one image."""
        return (self.per_image.std() / math.sqrt(len(self.per_image))).item()

    @property
    def monte_carlo_error(self) -> float:
        """An upper estimate of the standard deviation of `mean` over mask seeds; 0 where exact,
        NaN from a single pass. From the differences of passes that follow each other, whose level 0
        counts lie in neighbouring strata ("collapsed strata": Cochran, Sampling Techniques, section
        5A.12); what the passes gain by sharing out the sub-patches is not seen."""
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
    """The mask seeds of the images `indices` of a set. They are hashed, not added, so that sets of
    masks with different `seed` share none: their spread is the Monte Carlo error."""
    return [stream_seed(seed, int(index)) for index in indices]


def pass_bits(
    model: FractalModel, images: Tensor, seeds: Sequence[int], *, passes: int, labels: Tensor
) -> Tensor:
    """(B, 3, S, S) uint8 to (B, P) float64 bits per dimension of each pass; `labels` of NO_CLASS
    are unconditional, the published protocol. P is 1 where one pass is exact."""
    return pass_bits_by_part(model, images, seeds, passes=passes, labels=labels).sum(2)


@torch.no_grad()
def pass_bits_by_part(
    model: FractalModel, images: Tensor, seeds: Sequence[int], *, passes: int, labels: Tensor
) -> Tensor:
    """The same by what the bits are paid for: (B, P, 3 + G), see `part_names`."""
    keep_freed_memory(images.device)
    was_training = model.training
    passes = 1 if is_exact(model.config) else passes
    masks = StratifiedMasks(model.config, seeds, passes, images.device)
    nats = []
    model.eval()
    try:
        for number in range(passes):
            outcome = model(images, labels, masks=masks.mask_source(number), guides=exact_guides)
            nats.append(nats_by_part(outcome, len(images)))
    finally:
        model.train(was_training)
    return torch.stack(nats, dim=1) / math.log(2)


def part_names(config: ModelConfig) -> tuple[str, ...]:
    """Names of the terms of a model's bits, in the order of `nats_by_part`."""
    guided = (level.patch_size for level in config.levels if level.guiding_pixel)
    guides = (f"guiding pixels of {size} px patches" for size in guided)
    return ("red", "green", "blue", *guides)


class StratifiedMasks:
    """The masks of all passes of the bound for a batch of images."""

    def __init__(
        self, config: ModelConfig, seeds: Sequence[int], passes: int, device: torch.device
    ) -> None:
        self._config = config
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._masks = [mask.to(device) for mask in _all_masks(config, generators, passes)]

    def mask_source(self, number: int) -> MaskSource:
        """(R, T) bool for the rows of a level."""

        def masks(level: int, rows: Rows) -> Tensor:
            size = self._config.levels[level].patch_size
            index = rows.index(self._config.image_size, size)
            return self._masks[level][rows.image, number, index]

        return masks


def _all_masks(
    config: ModelConfig, generators: Sequence[torch.Generator], passes: int
) -> Iterator[Tensor]:
    """Level by level (B, P, n, T) bool; an AR level masks everything."""
    weight = torch.ones(len(generators), passes, 1, dtype=torch.float64)
    for level in config.levels:
        n = patches_per_image(config, level)
        if level.generator == "mar":
            counts = torch.stack([_counts(g, n, level.tokens, passes) for g in generators])
            scores = torch.stack([torch.rand(n, level.tokens, generator=g) for g in generators])
            mask = _share_out(counts, scores, weight)
        else:
            mask = torch.ones(*weight.shape, level.tokens, dtype=torch.bool)
        yield mask
        weight = _on_sub_patches(mask * (weight / mask.sum(-1))[..., None], level.grid)


def _counts(generator: torch.Generator, n: int, tokens: int, passes: int) -> Tensor:
    """(P, n) mask counts of an image's patches. Over the passes a patch visits each of the P bands
    of [0, 1) once, in a random order of its own (Latin hypercube sampling), so that the counts of a
    patch and of the one around it are independent; within a band the patches of the image lie
    evenly. The whole image, alone at its level, goes from the lowest band to the highest: few
    masked sub-patches, which weigh the most, come first."""
    visits = torch.rand(passes, n, generator=generator).argsort(dim=0)
    band = visits if n > 1 else torch.arange(passes)[:, None]
    place = torch.rand(passes, n, generator=generator).argsort(dim=1)
    offset = torch.rand(passes, 1, generator=generator, dtype=torch.float64)
    uniform = (band + (place + offset) / n) / passes
    return (1 + (uniform * tokens).floor().long()).clamp(max=tokens)


def _share_out(counts: Tensor, scores: Tensor, weight: Tensor) -> Tensor:
    """(B, P, n) counts, (B, n, T) random scores and (B, P, n) weights of the rows in the passes
    (0: absent) to (B, P, n, T) masks: each pass masks the sub-patches that have weighed the least
    so far. This is decided for numbered places, and which sub-patch has which place is random, so
    that each mask alone is a uniformly random set of its size."""
    total = torch.zeros(scores.shape, dtype=torch.float64)
    places = []
    for number in range(counts.shape[1]):
        count = counts[:, number, :, None]
        lightest = ranks(total.flatten(0, 1)).view(total.shape) < count
        total += lightest * (weight[:, number, :, None] / count)
        places.append(lightest)
    order = ranks(scores.flatten(0, 1)).view(scores.shape)
    return torch.stack(places, dim=1).gather(-1, order[:, None].expand(-1, len(places), -1, -1))


def _on_sub_patches(values: Tensor, grid: int) -> Tensor:
    """(B, P, n, T) values of the sub-patches of each patch to (B, P, n · T), row-major in the
    image."""
    batch, passes, n, _ = values.shape
    side = math.isqrt(n)
    cut = values.view(batch, passes, side, side, grid, grid)
    return cut.transpose(3, 4).reshape(batch, passes, -1)
