"""Likelihood in bits per dimension: exact for AR models, the any-order bound for MAR models.

The bound is the expected mean loss of the masked sub-patches at every level, if their number is
uniform on 1 … T and their choice is random. Decided here: each mask by itself is drawn in this way,
independently of the masks at the levels above, so the estimate is unbiased. The masks of an image's
passes are drawn together: their counts are stratified (spread evenly over 1 … T), and all
sub-patches get about the same total weight. This removes most of the variance. Each image has its
own random numbers, so its result does not depend on batch or workers. Images get no noise. Guiding
pixels are rounded to 8 bits and weighted by their number, so the result is a true bound.

Shapes: N images of a set, B of a batch, P passes, G levels with guiding pixels; a level has n
patches per image and T sub-patches per patch.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fractal_model.common.memory import keep_freed_memory
from fractal_model.config.model import ModelConfig
from fractal_model.model.fractal import (
    FractalModel,
    MaskSource,
    Rows,
    evaluation_mode,
    exact_guides,
)
from fractal_model.model.losses import nats_by_term
from fractal_model.model.randomness import patches_per_image, ranks, stream_seed


@dataclass(frozen=True)
class Likelihood:
    """Bits per dimension (per pixel and channel) of a set of images."""

    per_pass: Tensor
    """Bits per dimension of each image and pass, (N, P) float64. P = 1 if the likelihood is
    exact."""
    exact: bool
    """True if one pass gives the likelihood itself, False if the passes estimate its bound."""

    @property
    def passes(self) -> int:
        return self.per_pass.shape[1]

    @property
    def per_image(self) -> Tensor:
        """Bits per dimension of each image, (N,) float64: the mean over its passes."""
        return self.per_pass.mean(1)

    @property
    def mean(self) -> float:
        return self.per_image.mean().item()

    @property
    def standard_error(self) -> float:
        """Standard error of `mean` from the choice of images and masks; NaN for a single image."""
        return (self.per_image.std() / math.sqrt(len(self.per_image))).item()

    @property
    def monte_carlo_error(self) -> float:
        """Upper estimate of the standard deviation of `mean` over mask seeds: 0 for an exact
        likelihood, NaN for a single pass. It is computed from the differences of consecutive
        passes. Their numbers of masked sub-patches at level 0 lie in neighbouring strata
        ("collapsed strata": Cochran, Sampling Techniques, section 5A.12). The true deviation is
        smaller: the masks of an image also give all sub-patches about the same total weight, and
        this estimate ignores that."""
        if self.exact:
            return 0.0
        if self.passes == 1:
            return math.nan
        squares = self.per_pass.diff(dim=1).square().sum(1)
        variance = squares / (2 * self.passes * (self.passes - 1))
        return variance.sum().sqrt().item() / len(variance)


def mask_seeds(seed: int, indices: Sequence[int]) -> list[int]:
    """Return a mask seed for each image number in `indices`: a hash of `seed` and the number.
    Another `seed` changes all masks, so the Monte Carlo error is the spread of results over
    `seed`."""
    return [stream_seed(seed, int(index)) for index in indices]


def pass_bits(
    model: FractalModel, images: Tensor, seeds: Sequence[int], *, passes: int, labels: Tensor
) -> Tensor:
    """Return the bits per dimension of each image in each pass, (B, P) float64. P is `passes`, or 1
    if the likelihood is exact. `images` are (B, 3, S, S) uint8, `seeds` B mask seeds. If all
    `labels` (B,) are NO_CLASS, the likelihood is unconditional, as published. FractalError: images
    or labels do not fit the model."""
    return pass_bits_by_term(model, images, seeds, passes=passes, labels=labels).sum(2)


@torch.no_grad()
def pass_bits_by_term(
    model: FractalModel, images: Tensor, seeds: Sequence[int], *, passes: int, labels: Tensor
) -> Tensor:
    """Return each image's bits per dimension in each pass, split into terms, (B, P, 3 + G): red,
    green, blue, then the guiding pixels of each level that has them (see `term_names`)."""
    keep_freed_memory(images.device)
    passes = 1 if model.config.is_autoregressive else passes
    masks = StratifiedMasks(model.config, seeds, passes, images.device)
    nats = []
    with evaluation_mode(model):
        for number in range(passes):
            outcome = model(images, labels, masks=masks.mask_source(number), guides=exact_guides)
            nats.append(nats_by_term(outcome, len(images)))
    return torch.stack(nats, dim=1) / math.log(2)


def term_names(config: ModelConfig) -> tuple[str, ...]:
    """Return the names of the 3 + G terms into which `pass_bits_by_term` splits bits, in order."""
    guided = (level.patch_size for level in config.levels if level.guiding_pixel)
    guides = (f"guiding pixels of {size} px patches" for size in guided)
    return ("red", "green", "blue", *guides)


class StratifiedMasks:
    """Masks for all passes over a batch of images, drawn together so that every number of masked
    sub-patches occurs about equally often."""

    def __init__(
        self, config: ModelConfig, seeds: Sequence[int], passes: int, device: torch.device
    ) -> None:
        self._config = config
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._masks = [mask.to(device) for mask in _draw_masks(config, generators, passes)]

    def mask_source(self, number: int) -> MaskSource:
        """Return the function that gives the masks (R, T) bool of any level in pass `number`."""

        def masks(level: int, rows: Rows) -> Tensor:
            size = self._config.levels[level].patch_size
            index = rows.index(self._config.image_size, size)
            return self._masks[level][rows.image, number, index]

        return masks


def _draw_masks(
    config: ModelConfig, generators: Sequence[torch.Generator], passes: int
) -> Iterator[Tensor]:
    """Yield the masks of each level, from level 0 down, (B, P, n, T) bool: True where a sub-patch
    is predicted. At an AR level that is everywhere. `generators` has one entry for each image."""
    weight = torch.ones(len(generators), passes, 1, dtype=torch.float64)
    for level in config.levels:
        n = patches_per_image(config, level)
        if level.generator == "mar":
            counts = torch.stack([draw_counts(g, n, level.tokens, passes) for g in generators])
            scores = torch.stack([torch.rand(n, level.tokens, generator=g) for g in generators])
            mask = _choose_masked(counts, scores, weight)
        else:
            mask = torch.ones(*weight.shape, level.tokens, dtype=torch.bool)
        yield mask
        weight = _in_image_order(mask * (weight / mask.sum(-1))[..., None], level.grid)


def draw_counts(generator: torch.Generator, n: int, tokens: int, passes: int) -> Tensor:
    """Draw the number of masked sub-patches, 1 … T, for each pass and each of n patches, (P, n).
    The range 1 … T is divided into P equal bands. In its P passes a patch has one number from each
    band (Latin hypercube sampling), in a random order, so that its number does not depend on that
    of the patch around it. In one pass, the n patches have evenly spaced places within their bands.
    A single patch, as at level 0 of an image, takes the bands from low to high."""
    visits = torch.rand(passes, n, generator=generator).argsort(dim=0)
    band = visits if n > 1 else torch.arange(passes)[:, None]
    slot = torch.rand(passes, n, generator=generator).argsort(dim=1)
    offset = torch.rand(passes, 1, generator=generator, dtype=torch.float64)
    uniform = (band + (slot + offset) / n) / passes
    return (1 + (uniform * tokens).floor().long()).clamp(max=tokens)


def _choose_masked(counts: Tensor, scores: Tensor, weight: Tensor) -> Tensor:
    """Return masks (B, P, n, T) bool, each with `counts` (B, P, n) masked sub-patches. Each pass
    masks those of a patch's T slots with the smallest total weight so far. Random `scores` (B, n,
    T) give each sub-patch a slot, so each mask by itself is a uniformly random set of its size.
    `weight` (B, P, n) is a patch's weight in its image, 0 if a pass does not reach the patch."""
    total = torch.zeros(scores.shape, dtype=torch.float64)
    slots = []
    for number in range(counts.shape[1]):
        count = counts[:, number, :, None]
        lightest = ranks(total.flatten(0, 1)).view(total.shape) < count
        total += lightest * (weight[:, number, :, None] / count)
        slots.append(lightest)
    order = ranks(scores.flatten(0, 1)).view(scores.shape)
    return torch.stack(slots, dim=1).gather(-1, order[:, None].expand(-1, len(slots), -1, -1))


def _in_image_order(values: Tensor, grid: int) -> Tensor:
    """Reorder values (B, P, n, T), patch by patch, to (B, P, n · T), row by row in the image."""
    batch, passes, n, _ = values.shape
    side = math.isqrt(n)
    by_grid = values.view(batch, passes, side, side, grid, grid)
    return by_grid.transpose(3, 4).reshape(batch, passes, -1)
