"""The published costs: the paper's way of counting, and the utilisation that its times imply.

Decided here: operations are counted in the way that gives the paper's figures. The rules are: two
operations per multiply-add; all sub-patches are passed down (no masks); no prefix tokens; attention
scores in full; the projection of one condition; neither logits nor guiding pixels; ten operations
for each element of a normalisation (five in the usual counters, doubled like the rest). In GFLOPs
per image, FractalMAR-L's levels then give 215, 208, 419 and 22, FractalMAR-64 gives 438 and its
two-level ablation 5,516, each equal to the paper's when rounded. One transformer on the sequence of
all values needs 29,702 with MAR blocks and 29,908 with AR blocks. The paper has 29,845 and does not
say for which blocks. It has one figure for both kinds of 64 × 64 models, but AR levels need 5 %
more because of their wider SwiGLU.

The utilisations follow from the published times and our own counts (`flops.py`). They are shares of
the dense bfloat16 peak and include the products that activation checkpointing repeats, since the
published runs used it. A test derives them again from the shipped sizes.
"""

from fractal_model.config.model import LevelConfig, ModelConfig, PixelConfig
from fractal_model.costs.flops import block_flops
from fractal_model.costs.shapes import PIXEL_POSITIONS, Transformer, rows_per_image
from fractal_model.model.patches import CHANNEL_VALUES

NORM_OPERATIONS = 10
"""Operations per element of a normalisation, as the paper counts."""

LEVEL_GFLOPS = {"mar-l": (215, 208, 419, 22)}
"""Published GFLOPs of a forward pass of one image, by size: each level, then the pixel network."""
TOTAL_GFLOPS = {"ar-64": 438, "mar-64": 438, "ar-64-two-level": 5516, "mar-64-two-level": 5516}
FULL_SEQUENCE_GFLOPS = 29845
"""Published GFLOPs of a transformer on one sequence of all values of a 64 × 64 image."""

TRAINING_DAYS = {"mar-64": 3.5, "mar-l": 7.6}
"""Published days of training, 800 epochs on 32 H100. We assume that 3.5 is for FractalMAR-64."""
TRAINING_GPUS = 32
SAMPLING_SECONDS = {"mar-h": 1.29}
"""Published seconds to sample an image on one H100 PCIe, with 1,024 images at a time."""

TRAINING_UTILISATION = 0.169
"""Share of the GPUs' peak speed that FractalMAR-L's training reached, with the products that
activation checkpointing repeats. Without them (model-FLOPs utilisation) it is 0.128. It is the
default for all sizes, because it is lower than FractalMAR-64's share."""
TRAINING_UTILISATION_64 = 0.192
"""Share of the GPUs' peak speed that FractalMAR-64's training reached, with the products that
activation checkpointing repeats. Without them it is 0.144."""
SAMPLING_UTILISATION = 0.111
"""Share of the GPU's peak speed that FractalMAR-H's sampling reached."""


def paper_flops(model: ModelConfig) -> tuple[float, ...]:
    """Operations per image of a forward pass, by level, as the paper counts them."""
    *rows, pixels = rows_per_image(model)
    levels = []
    for level, r in zip(model.levels, rows, strict=True):
        inputs = level.condition_width + level.tokens * 3 * level.sub_patch_size**2
        levels.append(_paper_count(level, r, level.tokens, inputs))
    pixel = model.pixel
    return (*levels, _paper_count(pixel, pixels, PIXEL_POSITIONS, pixel.condition_width))


def full_sequence_flops(model: ModelConfig) -> float:
    """Operations per image, as the paper counts them, of a transformer of level 0's shape that
    reads all values of the image as one sequence."""
    length = model.image_size**2 * PIXEL_POSITIONS
    return _paper_count(model.levels[0], 1, length, length * CHANNEL_VALUES)


def _paper_count(part: LevelConfig | PixelConfig, rows: float, length: int, ends: int) -> float:
    """Operations of a transformer on `rows` sequences of `length` positions, as the paper counts
    them: blocks, normalisations, and the linear layers before and after the blocks, which map
    between the width and `ends` elements per row."""
    stack = Transformer.of(part)
    norms = NORM_OPERATIONS * rows * length * stack.width * (2 * stack.blocks + 2)
    return block_flops(stack, rows, length) + norms + 2 * rows * ends * stack.width
