"""Numbers of blocks, positions and rows in a model, from which operations and memory are counted.

Decided here: the number of rows is the expected number per image. A row of a MAR level passes only
its masked sub-patches to the level below. How many sub-patches of a row are masked does not depend
on the levels above, so the expected shares multiply from level to level.

Notation: level i has Rᵢ rows per image with Tᵢ sub-patches each. The last entry of a tuple belongs
to the pixel network.
"""

from dataclasses import dataclass
from statistics import NormalDist
from typing import Self

from fractal_model.config.mask_ratio import MaskRatio, lower_bound
from fractal_model.config.model import LevelConfig, ModelConfig, PixelConfig
from fractal_model.model.blocks import SWIGLU_MULTIPLE
from fractal_model.model.mar import GUIDING_BLOCKS, GUIDING_HEADS, GUIDING_WIDTH
from fractal_model.training.masks import MASK_RATIO_SD

PIXEL_POSITIONS = 3
"""Length of the pixel network's sequence: condition, red and green. Blue is no input."""


@dataclass(frozen=True)
class Transformer:
    """Shape of a transformer: a stack of equal blocks."""

    blocks: int
    width: int
    heads: int
    hidden: int
    """Hidden width of the feed-forward network."""
    gated: bool
    """True for SwiGLU and RMSNorm (AR levels), False for GELU and LayerNorm."""
    dropout: bool
    qk_norm: bool

    @classmethod
    def of(cls, part: LevelConfig | PixelConfig) -> Self:
        gated = getattr(part, "generator", "mar") == "ar"
        hidden = 4 * part.width
        if gated:
            multiples = -(-(8 * part.width // 3) // SWIGLU_MULTIPLE)
            hidden = multiples * SWIGLU_MULTIPLE
        dropout = getattr(part, "dropout", 0.0) > 0
        return cls(part.blocks, part.width, part.heads, hidden, gated, dropout, part.qk_norm)

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of one block's weight matrices, the smaller number first. Queries, keys
        and values are three matrices."""
        feed_forward = (self.width, self.hidden)
        return ((self.width, self.width),) * 4 + (feed_forward,) * (3 if self.gated else 2)

    @property
    def weights(self) -> int:
        """Number of elements in the weight matrices of one block."""
        return sum(rows * columns for rows, columns in self.matrices)


def transformers(model: ModelConfig) -> tuple[Transformer, ...]:
    """All transformers of a model: levels, networks of guiding pixels, and the pixel network."""
    guides = (guide_network(level) for level in model.levels if level.guiding_pixel)
    parts: tuple[LevelConfig | PixelConfig, ...] = (*model.levels, *guides, model.pixel)
    return tuple(map(Transformer.of, parts))


def positions(level: LevelConfig) -> int:
    """Length of a level's sequence. An AR level reads the condition first and never the last
    sub-patch. A MAR level reads the guiding pixel and the conditions before all its sub-patches."""
    if level.generator == "ar":
        return level.tokens
    return level.guiding_pixel + level.conditions + level.tokens


def guide_network(level: LevelConfig) -> PixelConfig:
    """Configuration of the network that predicts the guiding pixels of a level."""
    return PixelConfig(
        width=GUIDING_WIDTH,
        blocks=GUIDING_BLOCKS,
        heads=GUIDING_HEADS,
        condition_width=level.condition_width,
        qk_norm=level.qk_norm,
    )


def expected_masked_share(tokens: int, mask_ratio: MaskRatio) -> float:
    """Expected share of masked sub-patches in training, E⌈T·r⌉ / T for T = `tokens` sub-patches.

    The mask ratio r has the distribution that `training.masks` describes. The value is exact:
    E⌈T·r⌉ is the sum of P(r > k/T) over k = 0 … T − 1.
    """
    if mask_ratio == "uniform":
        return (tokens + 1) / (2 * tokens)
    normal, low = NormalDist(1.0, MASK_RATIO_SD), lower_bound(mask_ratio)
    below = normal.cdf(low)
    within = normal.cdf(1.0) - below
    points = (max(low, k / tokens) for k in range(tokens))
    above = (1 - (normal.cdf(point) - below) / within for point in points)
    return sum(above) / tokens


def training_shares(model: ModelConfig, mask_ratio: MaskRatio) -> tuple[float, ...]:
    """Expected share of each level's sub-patches that training passes to the level below."""
    return tuple(
        expected_masked_share(level.tokens, mask_ratio) if level.generator == "mar" else 1.0
        for level in model.levels
    )


def peak_shares(model: ModelConfig, mask_ratio: MaskRatio, images: int) -> tuple[float, ...]:
    """Shares for the memory of a step with `images` images: the expected ones, except at level 0 if
    the number of masks is uniform. Few images can then have far more than the expected number, so
    it is the upper limit, from numbers that are spread evenly over the images."""
    shares = training_shares(model, mask_ratio)
    if mask_ratio != "uniform" or model.levels[0].generator == "ar":
        return shares
    return (min(1.0, shares[0] + 1 / (2 * images)), *shares[1:])


def rows_per_image(
    model: ModelConfig, shares: tuple[float, ...] | None = None
) -> tuple[float, ...]:
    """Rows per image of each level and of the pixel network. Each level passes the share of its
    sub-patches in `shares` to the level below; by default it passes all."""
    rows = [1.0]
    for level, share in zip(model.levels, shares or (1.0,) * len(model.levels), strict=True):
        rows.append(rows[-1] * level.tokens * share)
    return tuple(rows)
