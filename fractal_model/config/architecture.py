"""The rows of the table `models` in params.yaml, as in Table 2 of the paper.

Each list in a row has one entry for each level and then one for the pixel network; `generators` has
none for the pixel network. The settings of a published checkpoint are read as such a row too.
"""

from typing import Annotated, Self, TypeVar

from pydantic import Field, model_validator

from fractal_model.common.strict import Flag, StrictModel
from fractal_model.config.model import (
    MOST_LEVELS,
    Blocks,
    Classes,
    Conditions,
    Dropout,
    Generator,
    LevelConfig,
    ModelConfig,
    PixelConfig,
    RedWeight,
    Side,
    Width,
)

Entry = TypeVar("Entry")
ByLevel = Annotated[tuple[Entry, ...], Field(max_length=MOST_LEVELS + 1)]


class Architecture(StrictModel):
    """The architecture of one size: one row of the table `models` in params.yaml."""

    patch_sizes: ByLevel[Side]
    """Side in pixels of the patches of each level, from the whole image down to 1."""
    widths: ByLevel[Width]
    """Width of each level's transformer, then of the pixel network."""
    blocks: ByLevel[Blocks]
    """Number of transformer blocks of each level, then of the pixel network."""
    heads: ByLevel[Width]
    """Number of attention heads of each level, then of the pixel network."""
    generators: ByLevel[Generator]
    """Kind of each level: `ar` (autoregressive) or `mar` (masked autoregressive)."""
    conditions: Conditions = 1
    """Number of conditions (1 or 5) that a MAR level below level 0 reads for each patch."""
    guiding_pixel: Flag = False
    """If true, a MAR level below level 0 predicts the mean colour of its patch first."""
    num_classes: Classes
    """Number of classes of the data set."""
    dropout: Dropout = 0.1
    """Share of activations that training drops, in attention and in the blocks."""
    qk_norm: Flag = False
    """If true, attention normalises queries and keys in each head (RMS norm with a learned scale),
    in all levels, in the pixel network and in the networks of guiding pixels. Published: false."""
    red_weight: RedWeight = 5.0
    """Weight of the red channel in the training loss; green and blue weigh 1."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        levels = len(self.patch_sizes)
        if levels < 2 or self.patch_sizes[-1] != 1:
            raise ValueError(
                f"patch_sizes {list(self.patch_sizes)} must go down to the pixel: give two or "
                f"more sizes, the last one 1"
            )
        for name in ("widths", "blocks", "heads"):
            if (entries := len(getattr(self, name))) != levels:
                raise ValueError(
                    f"{name} has length {entries}, patch_sizes has {levels}: match them"
                )
        if len(self.generators) != levels - 1:
            raise ValueError(
                f"generators has length {len(self.generators)} for {levels} patch sizes: give "
                f"{levels - 1}, without one for the pixel network"
            )
        self.to_model()
        return self

    def to_model(self) -> ModelConfig:
        """Return the configuration of the model. ValueError: its levels do not fit together."""
        levels = tuple(
            LevelConfig(
                generator=generator,
                patch_size=self.patch_sizes[i],
                sub_patch_size=self.patch_sizes[i + 1],
                width=self.widths[i],
                blocks=self.blocks[i],
                heads=self.heads[i],
                condition_width=self.widths[max(0, i - 1)],
                conditions=self.conditions if generator == "mar" else 1,
                guiding_pixel=self.guiding_pixel and i > 0 and generator == "mar",
                dropout=self.dropout,
                qk_norm=self.qk_norm,
            )
            for i, generator in enumerate(self.generators)
        )
        pixel = PixelConfig(
            width=self.widths[-1],
            blocks=self.blocks[-1],
            heads=self.heads[-1],
            condition_width=self.widths[-2],
            qk_norm=self.qk_norm,
        )
        return ModelConfig(
            num_classes=self.num_classes, levels=levels, pixel=pixel, red_weight=self.red_weight
        )
