"""The model's configuration, with one object for each level of the fractal.

`architecture.py` builds it from the table in `params.yaml`. A checkpoint stores it as JSON.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fractal_model.common.strict import NUMBER, Flag, StrictModel

Generator = Literal["ar", "mar"]
LARGEST_SIDE = 4096
"""Largest side of an image in pixels."""
MOST_LEVELS = 12
"""Largest number of levels, without the pixel network. If twelve levels each halve the side, 4096
pixels become one."""
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE), NUMBER]
Width = Annotated[int, Field(ge=1, le=65_536), NUMBER]
Blocks = Annotated[int, Field(ge=1, le=1000), NUMBER]
Classes = Annotated[int, Field(ge=1, le=1_000_000), NUMBER]
Conditions = Annotated[int, Field(ge=1, le=5), NUMBER]
Dropout = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False), NUMBER]
QkNorm = Annotated[Flag, Field(exclude_if=lambda value: not value)]
"""Written only if true, so that configurations and fingerprints from before it stay the same."""
RedWeight = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False), NUMBER]
UNCONDITIONAL = "none"
"""The word that asks for an image without a class; no class can have this name."""
MAX_CONDITIONS = 5
"""Number of conditions of a sub-patch below a MAR level: its own and those of four neighbours."""


class PixelConfig(StrictModel):
    """The pixel network, which predicts red, green and blue in turn (paper, section 4)."""

    width: Width
    blocks: Blocks
    heads: Width
    condition_width: Width
    qk_norm: QkNorm = False
    """True if attention normalises queries and keys, as in a level."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        _require_heads(self.width, self.heads, "the pixel network")
        return self


class LevelConfig(StrictModel):
    """One level: a transformer that reads a patch and outputs a condition for each sub-patch."""

    generator: Generator
    patch_size: Side
    """Side of the patches that the level models, in pixels."""
    sub_patch_size: Side
    """Side of the sub-patches that the next level models, in pixels."""
    width: Width
    blocks: Blocks
    heads: Width
    condition_width: Width
    """Width of the conditions that the level receives."""
    conditions: Conditions = 1
    """Number of conditions that a MAR level reads for each patch; an AR level reads one."""
    guiding_pixel: Flag = False
    """True if a MAR level predicts the mean colour of its patch first."""
    dropout: Dropout = 0.1
    qk_norm: QkNorm = False
    """True if attention normalises queries and keys: an RMS norm in each head, with a learned scale
    for each element of a head."""

    @property
    def grid(self) -> int:
        """Number of sub-patches along one side of a patch."""
        return self.patch_size // self.sub_patch_size

    @property
    def tokens(self) -> int:
        """Number of sub-patches of a patch."""
        return self.grid**2

    @model_validator(mode="after")
    def _check(self) -> Self:
        where = f"the level of patch size {self.patch_size}"
        if self.sub_patch_size >= self.patch_size or self.patch_size % self.sub_patch_size:
            raise ValueError(
                f"patch size {self.patch_size} is not a multiple of the next level's "
                f"{self.sub_patch_size}: let each size divide the one before, as in 64, 4, 1"
            )
        _require_heads(self.width, self.heads, where)
        if self.generator == "ar" and (self.width // self.heads) % 4:
            raise ValueError(
                f"{where} is AR and has {self.width // self.heads} elements a head (width "
                f"{self.width}, heads {self.heads}): choose heads that give a multiple of 4"
            )
        if self.generator == "ar" and (self.guiding_pixel or self.conditions != 1):
            raise ValueError(
                f"{where} is AR and has conditions {self.conditions}, guiding_pixel "
                f"{self.guiding_pixel}: set conditions to 1 and guiding_pixel to false"
            )
        return self


class ModelConfig(StrictModel):
    """A fractal generative model: levels from the whole image down, then the pixel network."""

    num_classes: Classes
    levels: Annotated[tuple[LevelConfig, ...], Field(min_length=1, max_length=MOST_LEVELS)]
    pixel: PixelConfig
    red_weight: RedWeight = 5.0
    """Weight of the red channel in the training loss; green and blue weigh 1."""
    class_names: tuple[str, ...] = ()
    """Names of the classes in the order of their numbers; empty if the names are not known."""

    @property
    def image_size(self) -> int:
        return self.levels[0].patch_size

    @property
    def is_autoregressive(self) -> bool:
        """True if all levels are AR. Then nothing is masked, and one pass gives the likelihood
        itself."""
        return all(level.generator == "ar" for level in self.levels)

    def conditions_read(self, level: int) -> int:
        """Number of conditions (1 or 5) that `level` gives to the next level for each sub-patch."""
        below = self.levels[level + 1 :]
        return MAX_CONDITIONS if below and below[0].conditions > 1 else 1

    @model_validator(mode="after")
    def _levels_fit(self) -> Self:
        below: tuple[LevelConfig | PixelConfig, ...] = (*self.levels[1:], self.pixel)
        for upper, lower in zip(self.levels, below, strict=True):
            size, conditions = 1, 1
            if isinstance(lower, LevelConfig):
                size, conditions = lower.patch_size, lower.conditions
            if upper.sub_patch_size != size or lower.condition_width != upper.width:
                raise ValueError(
                    f"levels do not fit together: a level gives sub-patches of "
                    f"{upper.sub_patch_size} px and width {upper.width}, the next one expects "
                    f"{size} px and width {lower.condition_width}: make them equal"
                )
            if upper.generator == "ar" and conditions > 1:
                raise ValueError(
                    f"the MAR level of patch size {size} reads {conditions} conditions but "
                    f"the AR level above gives one: set conditions to 1"
                )
        if len(self.class_names) not in (0, self.num_classes):
            raise ValueError(
                f"the number of class_names is {len(self.class_names)}, num_classes is "
                f"{self.num_classes}: match them"
            )
        if self.levels[0].guiding_pixel:
            raise ValueError("level 0 cannot have a guiding pixel: set its guiding_pixel to false")
        return self


def _require_heads(width: int, heads: int, where: str) -> None:
    if width % heads:
        allowed = ", ".join(str(n) for n in range(1, width + 1) if width % n == 0 and n <= 32)
        raise ValueError(
            f"heads {heads} does not divide the width {width} of {where}: choose one of {allowed}"
        )
