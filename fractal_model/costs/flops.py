"""Floating-point operations of a pass, a training step and a sampled image, by level.

Decided here: only matrix products count, two operations per multiply-add, with attention scores in
full. `torch.utils.flop_counter` counts in the same way, and the tests compare the two. The count
ignores that a fused attention kernel skips the causal half or computes scores again in the backward
pass, and that a GPU computes the logits of the pixels again there. All values are per image. Tuples
go from level 0 down, with the pixel network last.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from itertools import pairwise
from operator import add, mul

from fractal_model.config.model import LevelConfig, ModelConfig, PixelConfig
from fractal_model.config.sampling import SamplingConfig
from fractal_model.config.training import Checkpointing, OptimizerName, TrainingConfig
from fractal_model.costs.shapes import (
    PIXEL_POSITIONS,
    Transformer,
    guide_network,
    positions,
    rows_per_image,
    training_shares,
    transformers,
)
from fractal_model.model.patches import CHANNEL_VALUES
from fractal_model.sampling.schedules import guidance_at, masking_schedule

_MUON_ITERATIONS = 5
"""Iterations of Newton and Schulz with which torch's Muon orthogonalises a matrix."""


@dataclass(frozen=True)
class Products:
    """Operations of one forward pass, in groups that cost the backward pass differently."""

    blocks: float = 0.0
    """Operations in transformer blocks, which activation checkpointing computes twice."""
    not_repeated: float = 0.0
    """The part of `blocks` that activation checkpointing computes only once: the last product of a
    block, if the block has no dropout. (oneDNN, in float32 on a CPU, computes it twice too.)"""
    data: float = 0.0
    """Operations whose input is pixels. The backward pass computes no gradient of this input."""
    other: float = 0.0
    """Other operations, such as the projection of conditions and the logits."""

    def __add__(self, more: Products) -> Products:
        return Products(*map(add, astuple(self), astuple(more)))

    @property
    def forward(self) -> float:
        return self.blocks + self.data + self.other

    def training(self, *, activation_checkpointing: Checkpointing) -> float:
        """Operations of the forward and the backward pass. A product of the forward pass needs two
        products in the backward pass, or one if its input is pixels. Selective checkpointing
        repeats no product."""
        repeated = self.blocks - self.not_repeated if activation_checkpointing is True else 0.0
        return 3 * (self.blocks + self.other) + 2 * self.data + repeated


def pass_products(
    model: ModelConfig, shares: tuple[float, ...] | None = None
) -> tuple[Products, ...]:
    """Operations of a teacher-forced pass, by level. Each level passes the share of its sub-patches
    in `shares` to the level below; by default it passes all."""
    *rows, pixels = rows_per_image(model, shares)
    levels = (_level(level, r) for level, r in zip(model.levels, rows, strict=True))
    return (*levels, _pixel_network(model.pixel, pixels))


def training_flops(
    model: ModelConfig, shares: tuple[float, ...], *, activation_checkpointing: Checkpointing
) -> tuple[float, ...]:
    """Operations of forward and backward pass, by level. Each level passes the share of its
    sub-patches in `shares` to the level below (see `training_shares`)."""
    products = pass_products(model, shares)
    return tuple(p.training(activation_checkpointing=activation_checkpointing) for p in products)


def executed_training_flops(model: ModelConfig, recipe: TrainingConfig) -> tuple[float, ...]:
    """Operations of forward and backward pass, by level, with those that the recipe's activation
    checkpointing computes twice."""
    shares = training_shares(model, recipe.mask_ratio)
    by_level = recipe.checkpointing_by_level(len(model.levels))
    parts = zip(pass_products(model, shares), by_level, strict=True)
    return tuple(part.training(activation_checkpointing=choice) for part, choice in parts)


def optimizer_flops(model: ModelConfig, optimizer: OptimizerName) -> float:
    """Operations of the matrix products in one update of all weights: none with AdamW. With Muon
    each iteration for a matrix of the blocks, m × n with m ≤ n, has two products of 2 m² n
    operations and one of 2 m³."""
    if optimizer == "adamw":
        return 0.0
    per_block = ((t.blocks, m, n) for t in transformers(model) for m, n in t.matrices)
    return float(sum(_MUON_ITERATIONS * b * (4 * m**2 * n + 2 * m**3) for b, m, n in per_block))


def sampling_flops(
    model: ModelConfig,
    sampling: SamplingConfig,
    *,
    with_class: bool = True,
    guide: ModelConfig | None = None,
) -> tuple[float, ...]:
    """Operations for one sampled image, by level, together with those of the `guide`, if there is
    one.

    A MAR level computes its whole sequence in each iteration, with two exceptions: its first block
    computes queries, keys and values only for new positions, and its last block only the positions
    that are read. An AR level and a pixel network compute one position at a time and cache keys and
    values. Guidance doubles the rows; outside its interval it doubles only those of an AR level 0,
    up to the last step with guidance. Each sub-patch is sampled once. All masked sub-patches have
    the same input. The first block computes the products of this input once for all rows, so they
    are left out here.

    FractalError: the settings do not fit the model's levels.
    """
    iterations = sampling.level_iterations(model)
    alone, share = (1.0,) * iterations[0], 0.0
    other = (0.0,) * iterations[0]
    is_guided = sampling.guidance != 1 and (with_class or guide is not None)
    if is_guided:
        other, share = _other_branch(model.levels[0], iterations[0], sampling)
    if guide is None:
        both = tuple(map(add, alone, other))
        first = _Branches(both, 1.0 + is_guided)
        return _network_flops(model, iterations, first, 1 + share)
    own = _network_flops(model, iterations, _Branches(alone, 1.0), 1.0)
    guiding = _network_flops(guide, iterations, _Branches(other, float(is_guided)), share)
    return tuple(map(add, own, guiding))


@dataclass(frozen=True)
class _Branches:
    """Numbers of branches of a level: 1, 2 with null rows, or a mean over the level's rows."""

    by_step: tuple[float, ...]
    """Number of branches in each step."""
    embedded: float
    """Number of branches whose conditions are embedded."""

    @property
    def steps(self) -> int:
        """Number of steps up to the last one that is computed."""
        return max((step for step, n in enumerate(self.by_step, start=1) if n), default=0)


def _network_flops(
    model: ModelConfig, iterations: tuple[int, ...], first: _Branches, below: float
) -> tuple[float, ...]:
    """Operations of a network with the branches `first` at level 0, and with `below` branches, on
    average over the rows, at all levels below."""
    *rows, pixels = rows_per_image(model)
    branches = first, *(_Branches((below,) * steps, below) for steps in iterations[1:])
    levels = (
        _sampled_level(level, r, by_step, model.conditions_read(i))
        for i, (level, r, by_step) in enumerate(zip(model.levels, rows, branches, strict=True))
    )
    return (*levels, _sampled_pixel_network(model.pixel, below * pixels))


def _other_branch(
    level: LevelConfig, steps: int, sampling: SamplingConfig
) -> tuple[tuple[float, ...], float]:
    """Return for each step of level 0 1.0 if guidance's second branch is computed, else 0.0, and
    the share of sub-patches that are sampled with guidance."""
    masked = tuple(range(level.tokens, -1, -1))
    if level.generator == "mar":
        masked = (level.tokens, *masking_schedule(level.tokens, steps))
    drawn = [before - after for before, after in pairwise(masked)]
    # The last iteration of a MAR level counts one sub-patch as still masked.
    left = [max(n, level.generator == "mar") for n in masked[1:]]
    is_guided = [guidance_at((level.tokens - n) / level.tokens, sampling) is not None for n in left]
    share = sum(map(mul, drawn, is_guided)) / level.tokens
    if level.generator == "ar":  # Its cache needs all steps before one with guidance.
        return tuple(float(any(is_guided[t:])) for t in range(len(is_guided))), share
    return tuple(map(float, is_guided)), share


def published_sampling_flops(model: ModelConfig, sampling: SamplingConfig) -> tuple[float, ...]:
    """Operations of the published sampler for one image, by level. In each iteration a MAR level
    computes all its positions. For each of a pixel's three channels the pixel network computes all
    four positions of its sequence."""
    branches = 1 if sampling.guidance == 1 else 2
    *rows, pixels = rows_per_image(model)
    levels = (
        steps * _level_transformer(level, branches * r).forward
        + (_whole_pixel_network(guide_network(level), branches * r) if level.guiding_pixel else 0.0)
        if level.generator == "mar"
        else _sampled_level(level, r, _Branches((branches,) * steps, branches), 1)
        for level, r, steps in zip(
            model.levels, rows, sampling.level_iterations(model), strict=True
        )
    )
    return (*levels, _whole_pixel_network(model.pixel, branches * pixels))


def _whole_pixel_network(pixel: PixelConfig, rows: float) -> float:
    channel = block_flops(Transformer.of(pixel), rows, PIXEL_POSITIONS + 1)
    return PIXEL_POSITIONS * (channel + _pixel_ends(pixel, rows))


def block_flops(stack: Transformer, rows: float, length: int, *, cached: bool = False) -> float:
    """Operations of all blocks of a transformer on `rows` sequences of `length` positions. Each
    position reads the keys of all positions. With `cached`, position t reads only the keys of
    positions 0 … t."""
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
    """Operations that embed the sub-patches that a level reads: all of them, or in an AR level all
    except the last one."""
    embedded = level.tokens - (level.generator == "ar")
    return 2 * rows * embedded * 3 * level.sub_patch_size**2 * level.width


def _pixel_network(pixel: PixelConfig, rows: float) -> Products:
    return _blocks(Transformer.of(pixel), rows, PIXEL_POSITIONS) + Products(
        other=_pixel_ends(pixel, rows)
    )


def _pixel_ends(pixel: PixelConfig, rows: float) -> float:
    """Operations of the condition's projection and of the logits of three channels."""
    return 2 * rows * pixel.width * (pixel.condition_width + PIXEL_POSITIONS * CHANNEL_VALUES)


def _sampled_level(level: LevelConfig, rows: float, branches: _Branches, read: int) -> float:
    stack, length = Transformer.of(level), positions(level)
    if level.generator == "ar":
        condition = 2 * branches.embedded * rows * level.condition_width * level.width
        by_step = (
            n * (2 * stack.weights + 4 * (t + 1) * stack.width)
            for t, n in enumerate(branches.by_step)
        )
        blocks = rows * stack.blocks * sum(by_step)
        # Both branches share the embedding.
        embedded = min(1.0, branches.embedded) * max(0, branches.steps - 1) / (level.tokens - 1)
        return blocks + condition + embedded * _embedding(level, rows)
    guide = 0.0
    if level.guiding_pixel:
        guide = _sampled_pixel_network(guide_network(level), branches.embedded * rows)
    blocks = sum(branches.by_step) * block_flops(stack, rows, length)
    unread = rows * _unread_flops(level, branches, read)
    return blocks - unread + rows * _input_flops(level, branches) + guide


def _input_flops(level: LevelConfig, branches: _Branches) -> float:
    """Operations per row to add to those of `block_flops`; may be negative. They embed the first
    block's input, and replace the queries, keys and values of this block: a position has these
    computed once, not in each iteration. Sub-patches of the last iteration do not count, because no
    later iteration reads them."""
    prefix = branches.embedded * (positions(level) - level.tokens)
    masked = (level.tokens, *masking_schedule(level.tokens, len(branches.by_step)))
    inputs = min(1.0, branches.embedded) * (level.tokens - masked[max(0, branches.steps - 1)])
    read = branches.embedded * (level.conditions * level.condition_width + 3 * level.guiding_pixel)
    embedded = 2 * level.width * (read + inputs * 3 * level.sub_patch_size**2)
    projected = 6 * level.width**2
    return embedded + projected * (prefix + inputs - sum(branches.by_step) * positions(level))


def _unread_flops(level: LevelConfig, branches: _Branches, read: int) -> float:
    """Operations per row that the last block saves in all iterations together. For positions whose
    output nobody reads it computes no queries, attention or feed-forward network. In a level with
    only one block, `_input_flops` counts the queries, so they are not counted here."""
    stack, length = Transformer.of(level), positions(level)
    needed = (2 if stack.blocks > 1 else 3) * stack.width**2
    per_position = 2 * (stack.weights - needed) + 4 * length * stack.width
    masked = (level.tokens, *masking_schedule(level.tokens, len(branches.by_step)))
    outputs = (read * (before - after) for before, after in pairwise(masked))
    pairs = zip(outputs, branches.by_step, strict=True)
    return sum(b * per_position * (length - n) for n, b in pairs if n < level.tokens)


def _sampled_pixel_network(pixel: PixelConfig, rows: float) -> float:
    blocks = block_flops(Transformer.of(pixel), rows, PIXEL_POSITIONS, cached=True)
    return blocks + _pixel_ends(pixel, rows)
