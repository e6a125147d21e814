"""Sizes that the counts of products and of memory share: transformers, positions, rows.

Decided here: rows are expected numbers per image. A row of a MAR level hands on its masked
sub-patches alone; their number is independent of the row, so expectations multiply from level to
level and no sampling is needed.

Notation: level i has Rᵢ rows an image, of Tᵢ sub-patches each; the last entry of a tuple is the
pixel network's.
"""

from dataclasses import dataclass
from statistics import NormalDist
from typing import Self

from fractal_model.config.model import LevelConfig, ModelConfig, PixelConfig
from fractal_model.model.blocks import SWIGLU_MULTIPLE
from fractal_model.model.mar import GUIDING_BLOCKS, GUIDING_HEADS, GUIDING_WIDTH
from fractal_model.training.masks import MASK_RATIO_SD

PIXEL_POSITIONS = 3
"""The condition, red, green: blue is never fed in."""


@dataclass(frozen=True)
class Transformer:
    """A stack of equal blocks."""

    blocks: int
    width: int
    heads: int
    hidden: int
    """Width inside the feed-forward network."""
    gated: bool
    """SwiGLU after RMSNorm (AR levels), else GELU after LayerNorm."""
    dropout: bool

    @classmethod
    def of(cls, part: LevelConfig | PixelConfig) -> Self:
        gated = getattr(part, "generator", "mar") == "ar"
        hidden = 4 * part.width
        if gated:
            multiples = -(-(8 * part.width // 3) // SWIGLU_MULTIPLE)
            hidden = multiples * SWIGLU_MULTIPLE
        dropout = getattr(part, "dropout", 0.0) > 0
        return cls(part.blocks, part.width, part.heads, hidden, gated, dropout)

    @property
    def weights(self) -> int:
        """Elements of one block's weight matrices."""
        return 4 * self.width**2 + (3 if self.gated else 2) * self.width * self.hidden


def positions(level: LevelConfig) -> int:
    """Length of a level's sequence: an AR level's condition takes the place of the last
    sub-patch, a MAR level's prefix (guiding pixel, conditions) comes before all of them."""
    if level.generator == "ar":
        return level.tokens
    return level.guiding_pixel + level.conditions + level.tokens


def guide_network(level: LevelConfig) -> PixelConfig:
    """The network that predicts the guiding pixels of a level that has them."""
    return PixelConfig(
        width=GUIDING_WIDTH,
        blocks=GUIDING_BLOCKS,
        heads=GUIDING_HEADS,
        condition_width=level.condition_width,
    )


def expected_masked_share(tokens: int) -> float:
    """E⌈T·r⌉ / T for r from a normal of mean 1 and standard deviation 0.25 truncated to [0, 1].

    Exact: E⌈T·r⌉ is the sum over k = 0 … T − 1 of P(r > k/T).
    """
    normal = NormalDist(1.0, MASK_RATIO_SD)
    below = normal.cdf(0.0)
    within = normal.cdf(1.0) - below
    above = (1 - (normal.cdf(k / tokens) - below) / within for k in range(tokens))
    return sum(above) / tokens


def training_shares(model: ModelConfig) -> tuple[float, ...]:
    """Expected share of each level's sub-patches that go down in training."""
    return tuple(
        expected_masked_share(level.tokens) if level.generator == "mar" else 1.0
        for level in model.levels
    )


def rows_per_image(
    model: ModelConfig, shares: tuple[float, ...] | None = None
) -> tuple[float, ...]:
    """R of each level and of the pixel network; `shares` of the sub-patches go down, by default
    all of them."""
    rows = [1.0]
    for level, share in zip(model.levels, shares or (1.0,) * len(model.levels), strict=True):
        rows.append(rows[-1] * level.tokens * share)
    return tuple(rows)
