"""The least time that a GPU needs for a training step or for sampling, by level (roofline model).

Decided here: five kernels compute a block, each as fused as matrix products and attention allow:
norm and queries, keys and values; attention; projection and residual; norm and first product of the
feed-forward network; its second product and residual. Each reads its inputs and writes its outputs
once, in bfloat16; what it computes within is not written. A backward pass moves twice the bytes of
a forward pass. The pixels' logits are fused with their loss or with the draw, and never written.
Where sampling leaves out a part of a pass, its bytes are left out in proportion to its operations.
The least time is that of the operations at the peak or that of the bytes at the bandwidth, the
longer of both. What selective checkpointing computes again is fused with other kernels and costs
nothing. Starting a kernel takes no time here, so where kernels are small a GPU needs longer.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from fractal_model.common.gpus import Gpu
from fractal_model.config.model import LevelConfig, ModelConfig, PixelConfig
from fractal_model.config.params import Size
from fractal_model.costs.benchmark_levels import part_names
from fractal_model.costs.flops import block_flops, executed_training_flops, sampling_flops
from fractal_model.costs.shapes import (
    PIXEL_POSITIONS,
    Transformer,
    guide_network,
    positions,
    rows_per_image,
    training_shares,
)

_BFLOAT16 = 2
_KERNELS = 5
"""Kernels of a block."""
_BACKWARD = 2
"""Bytes and kernels of a backward pass, as a multiple of those of the forward pass."""


@dataclass(frozen=True)
class Floor:
    """What one part of a model needs at least, for a whole batch."""

    level: str
    flops: float
    bytes: float
    kernels: float
    """Number of kernels that start one after another."""

    def seconds(self, gpu: Gpu) -> float:
        """The least time in bfloat16."""
        return max(self.flops / gpu.peak("bfloat16"), self.bytes / gpu.bandwidth)


@dataclass(frozen=True)
class _Stack:
    """A transformer on a number of rows of a length."""

    shape: Transformer
    rows: float
    length: int

    @classmethod
    def of(cls, part: LevelConfig | PixelConfig, rows: float) -> "_Stack":
        length = positions(part) if isinstance(part, LevelConfig) else PIXEL_POSITIONS
        return cls(Transformer.of(part), rows, length)

    @property
    def bytes(self) -> float:
        """Bytes that a forward pass moves, without the weights."""
        elements = 14 * self.shape.width + 2 * self.shape.hidden
        return _BFLOAT16 * self.rows * self.length * self.shape.blocks * elements

    @property
    def cache_bytes(self) -> float:
        """Bytes of the keys and values of earlier positions, which are read again at each position
        if these are computed one after the other."""
        pairs = self.length * (self.length - 1) / 2
        return _BFLOAT16 * self.rows * self.shape.blocks * 2 * pairs * self.shape.width

    @property
    def weight_bytes(self) -> float:
        return _BFLOAT16 * self.shape.blocks * self.shape.weights

    @property
    def kernels(self) -> int:
        return _KERNELS * self.shape.blocks


def training_floor(size: Size, images: int) -> tuple[Floor, ...]:
    """What a training step on `images` images needs, by level, with the activation checkpointing of
    the size's recipe. The optimiser is left out."""
    model, recipe = size.model, size.training
    shares = training_shares(model, recipe.mask_ratio)
    recomputed = recipe.checkpointing_by_level(len(model.levels))
    flops = executed_training_flops(model, recipe)
    parts = []
    for i, stacks in enumerate(_stacks(model, shares)):
        passes = 1 + _BACKWARD + (recomputed[i] is True)
        moved = images * sum(stack.bytes for stack in stacks)
        weights = sum(stack.weight_bytes for stack in stacks)
        kernels = sum(stack.kernels for stack in stacks)
        parts.append((flops[i] * images, passes * (moved + weights), passes * kernels))
    return _floors(model, parts)


def sampling_floor(size: Size, images: int) -> tuple[Floor, ...]:
    """What sampling a batch of `images` images needs, by level, with the size's sampling settings.
    FractalError: the settings do not fit the model's levels."""
    model, sampling = size.model, size.sampling
    iterations = sampling.level_iterations(model)
    branches = images * (1 if sampling.guidance == 1 else 2)
    flops, parts, calls = sampling_flops(model, sampling), [], 1
    for i, (own, *guides) in enumerate(_stacks(model)):
        above, steps = calls, iterations[i] if i < len(iterations) else PIXEL_POSITIONS
        calls *= steps
        if i < len(iterations) and model.levels[i].generator == "mar":
            # A MAR level computes all its positions in each step.
            in_full = steps * branches * block_flops(own.shape, own.rows, own.length)
            moved = steps * branches * own.bytes * min(1.0, images * flops[i] / in_full)
        else:
            moved = branches * (own.bytes + own.cache_bytes)
        moved += branches * sum(guide.bytes + guide.cache_bytes for guide in guides)
        once = PIXEL_POSITIONS * above  # A guiding pixel is drawn before the level's first step.
        weights = calls * own.weight_bytes + once * sum(guide.weight_bytes for guide in guides)
        kernels = calls * own.kernels + once * sum(guide.kernels for guide in guides)
        parts.append((flops[i] * images, moved + weights, float(kernels)))
    return _floors(model, parts)


def _stacks(
    model: ModelConfig, shares: tuple[float, ...] | None = None
) -> list[tuple[_Stack, ...]]:
    """The transformers of each level, first its own and then that of guiding pixels, and of the
    pixel network; with the rows of one image."""
    *rows, pixels = rows_per_image(model, shares)
    parts = []
    for level, count in zip(model.levels, rows, strict=True):
        own, guide = _Stack.of(level, count), _Stack.of(guide_network(level), count)
        parts.append((own, guide) if level.guiding_pixel else (own,))
    return [*parts, (_Stack.of(model.pixel, pixels),)]


def _floors(model: ModelConfig, parts: Iterable[tuple[float, float, float]]) -> tuple[Floor, ...]:
    return tuple(Floor(name, *part) for name, part in zip(part_names(model), parts, strict=True))
