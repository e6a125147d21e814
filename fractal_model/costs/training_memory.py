"""Memory of a training step on one GPU, in bytes.

Decided here: activations are what autograd keeps for the way back, tensor by tensor, with the
fused attention (queries, keys, values, output and one float32 a row and head; never the scores).
The kernels of short sequences do not keep that float32: there this is a little too much.
With `precision: bfloat16` (autocast) weights, residual stream and norms stay float32; inputs of
matrix products, attention and the feed-forward network are bfloat16. Dropout keeps one byte an
element, as on a GPU; the attention's own dropout keeps nothing. RMSNorm counts its normalised
values as kept. Rows are the expected number, see `shapes.py`.

Not counted: the CUDA context and the kernels (about 1 GB), fragmentation of the allocator, and
temporaries except the logits'.
"""

from dataclasses import dataclass

from fractal_model.common.strict import StrictModel
from fractal_model.config.model import MAX_CONDITIONS, LevelConfig, ModelConfig, PixelConfig
from fractal_model.costs.shapes import (
    PIXEL_POSITIONS,
    Transformer,
    guide_network,
    positions,
    rows_per_image,
    training_shares,
)
from fractal_model.model.patches import CHANNEL_VALUES

BFLOAT16, FLOAT32, INT64 = 2, 4, 8
ADAMW_BYTES = 2 * FLOAT32
"""Of AdamW's two float32 moments, a parameter."""


@dataclass(frozen=True)
class Kept:
    """Bytes that autograd keeps for one part of the model."""

    block: float
    """In one block, its input included."""
    block_input: float
    blocks: int
    rest: float
    """Outside the blocks."""


class Activations(StrictModel):
    """Bytes of a batch's activations."""

    kept: float
    """At the end of the forward pass."""
    recomputed: float
    """With activation checkpointing: the rest of the one block that is computed again, the
    largest of all."""


class TrainingMemory(StrictModel):
    """Bytes on one GPU at the peak of a training step."""

    parameters: float
    gradients: float
    buckets: float
    """The copy of the gradients that DistributedDataParallel exchanges; 0 on one GPU."""
    optimizer: float
    average: float
    """The moving average of the weights; 0 where the recipe keeps none."""
    weight_copies: float
    """Weight matrices in bfloat16, which autocast makes for the length of the forward pass."""
    activations: Activations
    logits: float
    """Temporary: the pixel network's logits and their gradient beside what is kept of them."""

    @property
    def total(self) -> float:
        fixed = self.parameters + self.gradients + self.buckets + self.optimizer + self.average
        activations = self.activations.kept + self.activations.recomputed
        return fixed + self.weight_copies + activations + self.logits


def training_memory(
    model: ModelConfig,
    *,
    parameters: int,
    weights: int,
    images: int,
    gpus: int,
    precision: str,
    averaged: bool,
    activation_checkpointing: bool,
) -> TrainingMemory:
    """For `images` on each GPU; `weights` of the `parameters` are in matrices of linear layers."""
    pixels = rows_per_image(model, training_shares(model))[-1] * images
    return TrainingMemory(
        parameters=FLOAT32 * parameters,
        gradients=FLOAT32 * parameters,
        buckets=FLOAT32 * parameters if gpus > 1 else 0,
        optimizer=ADAMW_BYTES * parameters,
        average=FLOAT32 * parameters if averaged else 0,
        weight_copies=BFLOAT16 * weights if precision == "bfloat16" else 0,
        activations=activations(
            model,
            images=images,
            precision=precision,
            activation_checkpointing=activation_checkpointing,
        ),
        logits=2 * _logits(pixels),
    )


def activations(
    model: ModelConfig,
    *,
    images: int,
    precision: str,
    activation_checkpointing: bool,
    shares: tuple[float, ...] | None = None,
) -> Activations:
    """Of `images` images; by default expected over the masks that training draws."""
    # Bytes of an element of what autocast narrows.
    itemsize = BFLOAT16 if precision == "bfloat16" else FLOAT32
    rows = [images * r for r in rows_per_image(model, shares or training_shares(model))]
    parts, handed_on = [], 1  # the root repeats one condition without copying it
    for i, (level, count, below) in enumerate(zip(model.levels, rows, rows[1:], strict=False)):
        given = _handed_on(model, i)
        parts += _level(level, count, below, handed_on, given, itemsize)
        handed_on = given
    parts.append(_pixel_network(model.pixel, rows[-1], handed_on, itemsize))
    if not activation_checkpointing:
        return Activations(kept=sum(p.blocks * p.block + p.rest for p in parts), recomputed=0.0)
    return Activations(
        kept=sum(p.blocks * p.block_input + p.rest for p in parts),
        recomputed=max(p.block - p.block_input for p in parts),
    )


def _handed_on(model: ModelConfig, level: int) -> int:
    """Conditions for each row below: the first level always gives all that it has."""
    if model.levels[level].generator == "ar":
        return 1
    return MAX_CONDITIONS if level == 0 else model.conditions_read(level)


def _level(
    level: LevelConfig, rows: float, below: float, handed_on: int, given: int, itemsize: int
) -> list[Kept]:
    """The level's transformer, and its guide network if it has one; each row reads one of
    `handed_on` conditions and gives `given` to each of the `below` rows."""
    parts, ar = [], level.generator == "ar"
    elements = (level.tokens - ar) * 3 * level.sub_patch_size**2
    if ar:
        rest = rows * _condition(level, handed_on, itemsize)
    else:
        conditions = level.conditions * level.condition_width * itemsize
        rest = rows * (conditions + level.tokens) + below * (INT64 + given * (INT64 + 1))
    if level.guiding_pixel:
        rest += rows * 3 * itemsize
        parts = [_pixel_network(guide_network(level), rows, handed_on, itemsize)]
    rest += rows * elements * itemsize
    return [_transformer(Transformer.of(level), rows, positions(level), rest, itemsize), *parts]


def _pixel_network(pixel: PixelConfig, rows: float, handed_on: int, itemsize: int) -> Kept:
    """Ends in the output of the last norm and the logarithms of the probabilities, float32."""
    output = PIXEL_POSITIONS * pixel.width * FLOAT32
    values = PIXEL_POSITIONS * INT64
    rest = rows * (_condition(pixel, handed_on, itemsize) + output + values) + _logits(rows)
    return _transformer(Transformer.of(pixel), rows, PIXEL_POSITIONS, rest, itemsize)


def _transformer(stack: Transformer, rows: float, length: int, rest: float, itemsize: int) -> Kept:
    """Blocks, and the norms before and after them with their float32 inputs."""
    count = rows * length
    stream = FLOAT32 * stack.width
    norms = 2 * (stream + 2 * FLOAT32)
    return Kept(
        block=count * _block(stack, itemsize),
        block_input=count * stream,
        blocks=stack.blocks,
        rest=rest + count * norms,
    )


def _block(stack: Transformer, itemsize: int) -> float:
    """Bytes a position: two norms with their inputs, attention, feed-forward network."""
    if stack.gated:
        norms = 2 * (2 * FLOAT32 * stack.width + FLOAT32)
        # Rotated queries and keys beside the projection's output; under autocast each of the two
        # gate products casts its own input.
        narrow = (1 + 5 + 1 + 1 + (itemsize == BFLOAT16)) * stack.width + 4 * stack.hidden
        masks = 2 * stack.width
    else:
        norms = 2 * (FLOAT32 * stack.width + 2 * FLOAT32)
        narrow = (1 + 3 + 1 + 1) * stack.width + 2 * stack.hidden
        masks = 2 * stack.width + stack.hidden
    return norms + narrow * itemsize + FLOAT32 * stack.heads + (masks if stack.dropout else 0)


def _condition(part: LevelConfig | PixelConfig, handed_on: int, itemsize: int) -> float:
    """Bytes a row of the one condition read: in float32 a view, which keeps all it is a view of."""
    return (handed_on if itemsize == FLOAT32 else 1) * part.condition_width * itemsize


def _logits(rows: float) -> float:
    return rows * PIXEL_POSITIONS * CHANNEL_VALUES * FLOAT32
