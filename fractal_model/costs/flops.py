"""Floating-point operations of a pass, a training step and a sampled image, by level.

Decided here: matrix products alone are counted, two operations a multiply-add, attention scores in
full (as `torch.utils.flop_counter` counts, which the tests hold against it). A fused attention
kernel that skips the causal half or computes scores again on the way back does not change the
count. Everything is per image; tuples go from level 0 down, the pixel network last.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from itertools import pairwise
from operator import add

from fractal_model.config.model import LevelConfig, ModelConfig, PixelConfig
from fractal_model.config.sampling import SamplingConfig
from fractal_model.costs.shapes import (
    PIXEL_POSITIONS,
    Transformer,
    guide_network,
    positions,
    rows_per_image,
    training_shares,
)
from fractal_model.model.patches import CHANNEL_VALUES
from fractal_model.sampling.schedules import masking_schedule


@dataclass(frozen=True)
class Products:
    """Operations of one forward pass, told apart by what the way back needs of them."""

    blocks: float = 0.0
    """In transformer blocks: computed twice with activation checkpointing."""
    not_repeated: float = 0.0
    """Of these, the last product of blocks without dropout: nothing after it is kept, so
    recomputation stops before it (but not oneDNN's, in float32 on a CPU, which is one piece)."""
    data: float = 0.0
    """With pixels as the input, which needs no gradient."""
    other: float = 0.0

    def __add__(self, more: Products) -> Products:
        return Products(*map(add, astuple(self), astuple(more)))

    @property
    def forward(self) -> float:
        return self.blocks + self.data + self.other

    def training(self, *, activation_checkpointing: bool) -> float:
        """Forward and backward: on the way back one product for the weight, one for the input."""
        repeated = self.blocks - self.not_repeated if activation_checkpointing else 0.0
        return 3 * (self.blocks + self.other) + 2 * self.data + repeated


def pass_products(
    model: ModelConfig, shares: tuple[float, ...] | None = None
) -> tuple[Products, ...]:
    """A teacher-forced pass in which `shares` of each level's sub-patches go down (default all)."""
    *rows, pixels = rows_per_image(model, shares)
    levels = (_level(level, r) for level, r in zip(model.levels, rows, strict=True))
    return (*levels, _pixel_network(model.pixel, pixels))


def training_flops(
    model: ModelConfig, *, activation_checkpointing: bool, shares: tuple[float, ...] | None = None
) -> tuple[float, ...]:
    """Forward and backward; by default expected over the masks that training draws."""
    products = pass_products(model, shares or training_shares(model))
    return tuple(p.training(activation_checkpointing=activation_checkpointing) for p in products)


def sampling_flops(
    model: ModelConfig, sampling: SamplingConfig, *, with_class: bool = True
) -> tuple[float, ...]:
    """One image from the sampler: a MAR level runs its whole sequence in each iteration, but of its
    first block queries, keys and values only for what is new, and of its last block no more than
    is read of it; an AR level and a pixel network run one position at a time on cached keys and
    values; guidance runs every row twice. FractalError where the iterations do not fit the model.

    Every sub-patch is sampled once, so the rows are those of a pass in which all go down. What is
    computed once a call for all rows, the first block's part of masked sub-patches, is left out.
    """
    branches = 2 if with_class and sampling.guidance != 1 else 1
    *rows, pixels = rows_per_image(model)
    iterations = sampling.level_iterations(model)
    levels = (
        _sampled_level(level, r, steps, branches, model.conditions_read(i))
        for i, (level, r, steps) in enumerate(zip(model.levels, rows, iterations, strict=True))
    )
    return (*levels, _sampled_pixel_network(model.pixel, branches * pixels))


def published_sampling_flops(model: ModelConfig, sampling: SamplingConfig) -> tuple[float, ...]:
    """The same of the published sampler: a MAR level's whole sequence through all blocks in each
    iteration, and for each channel of a pixel its whole network, all four positions of it."""
    branches = 1 if sampling.guidance == 1 else 2
    *rows, pixels = rows_per_image(model)
    levels = (
        steps * _level_transformer(level, branches * r).forward
        + (_whole_pixel_network(guide_network(level), branches * r) if level.guiding_pixel else 0.0)
        if level.generator == "mar"
        else _sampled_level(level, r, steps, branches, 1)
        for level, r, steps in zip(
            model.levels, rows, sampling.level_iterations(model), strict=True
        )
    )
    return (*levels, _whole_pixel_network(model.pixel, branches * pixels))


def _whole_pixel_network(pixel: PixelConfig, rows: float) -> float:
    once = block_flops(Transformer.of(pixel), rows, PIXEL_POSITIONS + 1)
    return PIXEL_POSITIONS * (once + _pixel_ends(pixel, rows))


def block_flops(stack: Transformer, rows: float, length: int, *, cached: bool = False) -> float:
    """All blocks over `length` positions; cached, position t reads the t + 1 keys there are."""
    pairs = length * (length + 1) / 2 if cached else length**2
    return rows * stack.blocks * (2 * length * stack.weights + 4 * pairs * stack.width)


def _blocks(stack: Transformer, rows: float, length: int) -> Products:
    last = 2 * rows * stack.blocks * length * stack.width * stack.hidden
    return Products(
        blocks=block_flops(stack, rows, length), not_repeated=0.0 if stack.dropout else last
    )


def _level(level: LevelConfig, rows: float) -> Products:
    products = _level_transformer(level, rows)
    if level.guiding_pixel:
        products += _pixel_network(guide_network(level), rows)
    return products


def _level_transformer(level: LevelConfig, rows: float) -> Products:
    read = level.conditions * level.condition_width
    guide = 2 * rows * 3 * level.width if level.guiding_pixel else 0.0
    return _blocks(Transformer.of(level), rows, positions(level)) + Products(
        data=_embedding(level, rows) + guide, other=2 * rows * read * level.width
    )


def _embedding(level: LevelConfig, rows: float) -> float:
    """An AR level never reads its last sub-patch."""
    embedded = level.tokens - (level.generator == "ar")
    return 2 * rows * embedded * 3 * level.sub_patch_size**2 * level.width


def _pixel_network(pixel: PixelConfig, rows: float) -> Products:
    return _blocks(Transformer.of(pixel), rows, PIXEL_POSITIONS) + Products(
        other=_pixel_ends(pixel, rows)
    )


def _pixel_ends(pixel: PixelConfig, rows: float) -> float:
    """The condition's projection and the logits of three channels."""
    return 2 * rows * pixel.width * (pixel.condition_width + PIXEL_POSITIONS * CHANNEL_VALUES)


def _sampled_level(level: LevelConfig, rows: float, steps: int, branches: int, read: int) -> float:
    if level.generator == "ar":
        stack = Transformer.of(level)
        condition = 2 * branches * rows * level.condition_width * level.width
        blocks = block_flops(stack, branches * rows, level.tokens, cached=True)
        return blocks + condition + _embedding(level, rows)  # both branches embed one canvas
    guide = 0.0
    if level.guiding_pixel:
        guide = _sampled_pixel_network(guide_network(level), branches * rows)
    stack, length = Transformer.of(level), positions(level)
    blocks = steps * block_flops(stack, branches * rows, length)
    left_out = branches * rows * _last_block_left_out(level, steps, read)
    return blocks - left_out + rows * _taken_in(level, steps, branches) + guide


def _taken_in(level: LevelConfig, steps: int, branches: int) -> float:
    """Of a row: what goes into the first block, and its queries, keys and values, once for each
    position, instead of those of all positions in each iteration; the sub-patches of the last
    iteration are never fed in."""
    prefix = branches * (positions(level) - level.tokens)
    fed_in = level.tokens - masking_schedule(level.tokens, steps)[-2] if steps > 1 else 0
    read = branches * (level.conditions * level.condition_width + 3 * level.guiding_pixel)
    embedded = 2 * level.width * (read + fed_in * 3 * level.sub_patch_size**2)
    once = 6 * level.width**2
    return embedded + once * (prefix + fed_in - steps * branches * positions(level))


def _last_block_left_out(level: LevelConfig, steps: int, read: int) -> float:
    """Of a row, over all iterations: queries, scores and what follows them for the positions whose
    output nobody reads; an only block's queries are there already."""
    stack, length = Transformer.of(level), positions(level)
    anyway = (2 if stack.blocks > 1 else 3) * stack.width**2
    a_position = 2 * (stack.weights - anyway) + 4 * length * stack.width
    left = (level.tokens, *masking_schedule(level.tokens, steps))
    computed = (read * (before - after) for before, after in pairwise(left))
    return sum(a_position * (length - n) for n in computed if n < level.tokens)


def _sampled_pixel_network(pixel: PixelConfig, rows: float) -> float:
    blocks = block_flops(Transformer.of(pixel), rows, PIXEL_POSITIONS, cached=True)
    return blocks + _pixel_ends(pixel, rows)
