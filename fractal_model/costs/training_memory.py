"""Memory of a training step on one GPU, or of a worker on a CPU, in bytes.

Decided here: activations are the tensors that autograd keeps for the backward pass. Fused attention
keeps queries, keys, values, output and one float32 per row and head, but no scores. The kernels of
short sequences do not keep that float32, so the estimate for them is a little too high. With
`precision: bfloat16` (autocast), weights, residual stream and norms are float32; inputs of matrix
products, attention and the feed-forward network are bfloat16. Dropout keeps one byte per element,
as on a GPU, except in attention, where it keeps nothing. RMSNorm keeps its normalised values. A GPU
computes the logits of the pixels in parts and keeps none of them. The number of rows is that of
`shapes.peak_shares`.

Not counted: the CUDA context and the kernels (about 1 GB), fragmentation of the allocator, and
temporary tensors except the logits.
"""

from dataclasses import dataclass

from fractal_model.common.strict import StrictModel
from fractal_model.config.mask_ratio import MaskRatio
from fractal_model.config.model import MAX_CONDITIONS, LevelConfig, ModelConfig, PixelConfig
from fractal_model.config.training import Checkpointing, OptimizerName
from fractal_model.costs.shapes import (
    PIXEL_POSITIONS,
    Transformer,
    guide_network,
    peak_shares,
    positions,
    rows_per_image,
    transformers,
)
from fractal_model.model.kernels.cross_entropy import MOST_ROWS
from fractal_model.model.patches import CHANNEL_VALUES

BFLOAT16, FLOAT32, INT64 = 2, 4, 8


@dataclass(frozen=True)
class Kept:
    """Bytes that autograd keeps for one part of the model."""

    block: float
    """Bytes kept for one transformer block, its input included."""
    products: float
    """Bytes kept for one block's input and the results of its products and attention."""
    spare: float
    """The part of `products` that one block alone would not keep: the results of its projection and
    of its last product."""
    block_input: float
    """Bytes kept for one block's input alone."""
    blocks: int
    """Number of blocks."""
    rest: float
    """Bytes kept for everything outside the blocks."""

    def kept_per_block(self, checkpointing: Checkpointing) -> float:
        """Bytes kept for one block at the end of the forward pass."""
        if checkpointing == "selective":
            return self.products
        return self.block_input if checkpointing else self.block

    def recomputed(self, checkpointing: Checkpointing) -> float:
        """Bytes that the backward pass adds when it computes one block again."""
        kept = self.kept_per_block(checkpointing)
        return self.block - (kept - self.spare if checkpointing == "selective" else kept)


class Activations(StrictModel):
    """Activations of a batch in bytes."""

    kept: float
    """Bytes that autograd keeps at the end of the forward pass, for the backward pass."""
    recomputed: float
    """Bytes that the backward pass adds, with activation checkpointing, when it recomputes the
    largest block: what this block keeps, except what the forward pass has kept. Otherwise 0."""


class TrainingMemory(StrictModel):
    """Memory of one GPU at the peak of a training step, in bytes."""

    parameters: float
    gradients: float
    buckets: float
    """The copy of the gradients that DistributedDataParallel exchanges; 0 on one GPU."""
    optimizer: float
    """The moments of AdamW and Muon in float32."""
    average: float
    """The moving averages of the weights; 0 if the recipe has none."""
    weight_copies: float
    """Copies of the weight matrices in bfloat16, which autocast keeps during the forward pass."""
    activations: Activations
    logits: float
    """Temporary tensors: the pixel network's logits and their gradient, on a GPU of one part."""

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
    averages: int,
    activation_checkpointing: Checkpointing,
    optimizer: OptimizerName,
    mask_ratio: MaskRatio,
    on_gpu: bool = True,
) -> TrainingMemory:
    """Return the memory of each GPU, in bytes, in a training step with `images` images per GPU.
    `parameters` counts all parameters, `weights` those in matrices of linear layers, `averages` the
    moving averages of the weights. Without `on_gpu` it is that of a worker on a CPU, which keeps
    all logits of the pixels."""
    shares = peak_shares(model, mask_ratio, images)
    pixels = rows_per_image(model, shares)[-1] * images
    return TrainingMemory(
        parameters=FLOAT32 * parameters,
        gradients=FLOAT32 * parameters,
        buckets=FLOAT32 * parameters if gpus > 1 else 0,
        optimizer=optimizer_bytes(model, parameters, optimizer),
        average=averages * FLOAT32 * parameters,
        weight_copies=BFLOAT16 * weights if precision == "bfloat16" else 0,
        activations=activations(
            model,
            images=images,
            precision=precision,
            activation_checkpointing=activation_checkpointing,
            shares=shares,
            on_gpu=on_gpu,
        ),
        logits=2 * _logits(min(pixels, MOST_ROWS) / PIXEL_POSITIONS if on_gpu else pixels),
    )


def optimizer_bytes(model: ModelConfig, parameters: int, optimizer: OptimizerName) -> int:
    """Bytes of the optimiser's state for a model with this number of parameters: two float32
    moments for each parameter, or one if Muon updates it."""
    hidden = sum(stack.blocks * stack.weights for stack in transformers(model))
    return FLOAT32 * (2 * parameters - (hidden if optimizer == "muon" else 0))


def activations(
    model: ModelConfig,
    *,
    images: int,
    precision: str,
    activation_checkpointing: Checkpointing,
    shares: tuple[float, ...],
    on_gpu: bool = True,
) -> Activations:
    """Estimate the activations of a training step with `images` images. `shares` has, for each
    level, the share of its sub-patches that is passed to the level below. Without `on_gpu` those of
    a step on a CPU."""
    # Bytes per element of the tensors that autocast stores as bfloat16.
    itemsize = BFLOAT16 if precision == "bfloat16" else FLOAT32
    rows = [images * r for r in rows_per_image(model, shares)]
    parts, conditions = [], 1  # Level 0 repeats its one condition without copying it.
    for i, (level, count, below) in enumerate(zip(model.levels, rows, rows[1:], strict=False)):
        passed_down = _conditions_below(model, i)
        parts += _level(level, count, below, conditions, passed_down, itemsize)
        conditions = passed_down
    parts.append(_pixel_network(model.pixel, rows[-1], conditions, itemsize))
    kept = sum(p.blocks * p.kept_per_block(activation_checkpointing) + p.rest for p in parts)
    if not on_gpu:
        guides = (n for n, level in zip(rows, model.levels, strict=False) if level.guiding_pixel)
        kept += sum(map(_logits, (rows[-1], *guides)))
    return Activations(
        kept=kept,
        recomputed=max(p.recomputed(activation_checkpointing) for p in parts),
    )


def _conditions_below(model: ModelConfig, level: int) -> int:
    """Return how many conditions are stored for each row below `level`. An AR level gives 1. A MAR
    level gives MAX_CONDITIONS if it is level 0, otherwise as many as the next level reads."""
    if model.levels[level].generator == "ar":
        return 1
    return MAX_CONDITIONS if level == 0 else model.conditions_read(level)


def _level(
    level: LevelConfig, rows: float, below: float, above: int, passed_down: int, itemsize: int
) -> list[Kept]:
    """Bytes kept for a level's transformer, and for its guide network if it has one. Each of the
    level's `rows` gets `above` conditions. Each of the next level's `below` rows gets `passed_down`
    conditions."""
    parts, ar = [], level.generator == "ar"
    elements = (level.tokens - ar) * 3 * level.sub_patch_size**2
    if ar:
        rest = rows * _condition(level, above, itemsize)
    else:
        conditions = level.conditions * level.condition_width * itemsize
        rest = rows * (conditions + level.tokens) + below * (INT64 + passed_down * (INT64 + 1))
    if level.guiding_pixel:
        rest += rows * 3 * itemsize
        parts = [_pixel_network(guide_network(level), rows, above, itemsize)]
    rest += rows * elements * itemsize
    return [_transformer(Transformer.of(level), rows, positions(level), rest, itemsize), *parts]


def _pixel_network(pixel: PixelConfig, rows: float, above: int, itemsize: int) -> Kept:
    """Bytes kept for a pixel network, the last norm's output and the targets included, without the
    log-probabilities."""
    output = PIXEL_POSITIONS * pixel.width * FLOAT32
    values = PIXEL_POSITIONS * INT64
    rest = rows * (_condition(pixel, above, itemsize) + output + values)
    return _transformer(Transformer.of(pixel), rows, PIXEL_POSITIONS, rest, itemsize)


def _transformer(stack: Transformer, rows: float, length: int, rest: float, itemsize: int) -> Kept:
    """Bytes kept for a transformer: its blocks, the norms before and after them, and `rest` bytes
    for everything else. `itemsize`: bytes of an element that autocast may store as bfloat16."""
    count = rows * length
    stream = FLOAT32 * stack.width
    norms = 2 * (stream + 2 * FLOAT32)
    return Kept(
        block=count * _block(stack, itemsize),
        products=count * (stream + _products(stack, itemsize)),
        spare=count * 2 * stack.width * itemsize,
        block_input=count * stream,
        blocks=stack.blocks,
        rest=rest + count * norms,
    )


def _block(stack: Transformer, itemsize: int) -> float:
    """Bytes that one block keeps per position: for its two norms and their inputs, for attention
    and for the feed-forward network."""
    if stack.gated:
        norms = 2 * (2 * FLOAT32 * stack.width + FLOAT32)
        # Rotated queries and keys are kept beside the projection's output. With autocast each of
        # the two gate products keeps its own copy of the input.
        narrow = (1 + 5 + 1 + 1 + (itemsize == BFLOAT16)) * stack.width + 4 * stack.hidden
        masks = 2 * stack.width
    else:
        norms = 2 * (FLOAT32 * stack.width + 2 * FLOAT32)
        narrow = (1 + 3 + 1 + 1) * stack.width + 2 * stack.hidden
        masks = 2 * stack.width + stack.hidden
    if stack.qk_norm:
        # Normalised queries and keys in float32. Float32 also keeps what attention reads beside the
        # projection's output; autocast keeps float32 copies of queries and keys in its place.
        norms += FLOAT32 * ((5 if itemsize == FLOAT32 else 4) * stack.width + 2 * stack.heads)
    return norms + narrow * itemsize + FLOAT32 * stack.heads + (masks if stack.dropout else 0)


def _products(stack: Transformer, itemsize: int) -> float:
    """Bytes per position of the results of a block's products and attention. Those of
    long attention with dropout are counted too, which a GPU does not keep."""
    outputs = 6 * stack.width + (1 + stack.gated) * stack.hidden
    return outputs * itemsize + FLOAT32 * stack.heads


def _condition(part: LevelConfig | PixelConfig, above: int, itemsize: int) -> float:
    """Bytes kept per row for the one condition that the part reads. In bfloat16 it is a copy. In
    float32 it is a view of the row's `above` conditions, so all of these are kept."""
    return (above if itemsize == FLOAT32 else 1) * part.condition_width * itemsize


def _logits(rows: float) -> float:
    return rows * PIXEL_POSITIONS * CHANNEL_VALUES * FLOAT32
