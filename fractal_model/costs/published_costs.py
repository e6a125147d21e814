"""The published costs: how the paper counts, and what its times say of the hardware's use.

Decided here, by trying which way of counting gives the paper's figures: two operations a
multiply-add; every sub-patch goes down (no masks); sequences without prefix tokens; attention
scores in full; one condition's projection; neither logits nor guiding pixels; and ten operations
an element for each normalisation (five in the usual per-module counters, doubled with everything
else). FractalMAR-L's levels then come out as 215, 208, 419 and 22, FractalMAR-64 as 438 and its
two-level ablation as 5,516, each equal to the paper's when rounded. The full-length sequence comes
out at 29,702 with MAR blocks and 29,908 with AR blocks, around the paper's 29,845; which sequence
the paper means is not said. It gives one figure for both kinds of the 64 × 64 models; counted this
way AR levels, whose SwiGLU is wider, need 5 % more.

The utilisations are what the published times imply with our own counts (`flops.py`), of the dense
bfloat16 peak and with the products that activation checkpointing repeats, since the published runs
used it; a test derives them again from the shipped sizes.
"""

from fractal_model.config.model import LevelConfig, ModelConfig, PixelConfig
from fractal_model.costs.flops import block_flops
from fractal_model.costs.shapes import PIXEL_POSITIONS, Transformer, rows_per_image
from fractal_model.model.patches import CHANNEL_VALUES

NORM_OPERATIONS = 10
"""An element, as the paper counts."""

LEVEL_GFLOPS = {"mar-l": (215, 208, 419, 22)}
"""Per image and level."""
TOTAL_GFLOPS = {"ar-64": 438, "mar-64": 438, "ar-64-two-level": 5516, "mar-64-two-level": 5516}
FULL_SEQUENCE_GFLOPS = 29845
"""64 × 64 pixels as one sequence."""

TRAINING_DAYS = {"mar-64": 3.5, "mar-l": 7.6}
"""On 32 H100, 800 epochs. That the 64 × 64 figure is FractalMAR-64's is our reading."""
TRAINING_GPUS = 32
SAMPLING_SECONDS = {"mar-h": 1.29}
"""An image, on one H100 PCIe, 1,024 at a time."""

TRAINING_UTILISATION = 0.169
"""FractalMAR-L's, the default of every size because it is the lower of the two; 0.128 without the
repeated products (model-FLOPs utilisation)."""
TRAINING_UTILISATION_64 = 0.192
"""What the 3.5 days of FractalMAR-64 imply; 0.144 without the repeated products."""
SAMPLING_UTILISATION = 0.111
"""FractalMAR-H's."""


def paper_flops(model: ModelConfig) -> tuple[float, ...]:
    """Operations of a forward pass as the paper counts them, per image, pixel network last."""
    *rows, pixels = rows_per_image(model)
    counted = []
    for level, r in zip(model.levels, rows, strict=True):
        taken_in = level.condition_width + level.tokens * 3 * level.sub_patch_size**2
        counted.append(_counted(level, r, level.tokens, taken_in))
    pixel = model.pixel
    return (*counted, _counted(pixel, pixels, PIXEL_POSITIONS, pixel.condition_width))


def full_sequence_flops(model: ModelConfig) -> float:
    """Of the first level's transformer over every channel of every pixel as one sequence."""
    length = model.image_size**2 * PIXEL_POSITIONS
    return _counted(model.levels[0], 1, length, length * CHANNEL_VALUES)


def _counted(part: LevelConfig | PixelConfig, rows: float, length: int, ends: int) -> float:
    """Blocks, normalisations, and a row's products of `ends` elements with the width."""
    stack = Transformer.of(part)
    norms = NORM_OPERATIONS * rows * length * stack.width * (2 * stack.blocks + 2)
    return block_flops(stack, rows, length) + norms + 2 * rows * ends * stack.width
