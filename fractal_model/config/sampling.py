"""How images are sampled: guidance, iterations, order; the `sampling` section of params.yaml."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from fractal_model.common.errors import FractalError
from fractal_model.common.strict import PositiveInt, StrictModel
from fractal_model.config.model import ModelConfig

OrderName = Literal["random", "raster", "centre-out"]

PatchOrder = Annotated[
    Annotated[OrderName, Tag("name")] | Annotated[tuple[int, ...], Tag("patches")],
    Discriminator(lambda value: "name" if isinstance(value, str) else "patches"),
]
"""A name, or every patch of the first level once, row-major numbers in the order they come in."""

FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]

STRONGEST = 1000.0
"""Of guidance and logit scale; far above it float32 overflows, and the images are of one colour."""


class SamplingConfig(StrictModel):
    """Settings of a sampler (paper, section 5 and appendix)."""

    guidance: Annotated[FiniteFloat, Field(ge=0, le=STRONGEST)] = 1.0
    """Classifier-free guidance w; 1 is none."""
    logit_scale: Annotated[FiniteFloat, Field(gt=0, le=STRONGEST)] = 1.0
    """Multiplies the logits; the paper calls it temperature, above 1 it sharpens."""
    iterations: tuple[PositiveInt, ...] = ()
    """Steps of each level, from the top; an AR level always takes one a sub-patch. Empty: one
    sub-patch at a time at every level."""
    filter_threshold: Annotated[FiniteFloat, Field(ge=0, lt=1)] = 1e-4
    """Below this conditional probability, guidance may not raise a value."""
    compile: bool = False
    """Compile AR levels (on a GPU the innermost alone), and on a CPU the pixels below a MAR level,
    with torch.compile, a minute or more at the start; worth it from some tens of images on. Needs a
    C++ compiler."""
    order: PatchOrder = "random"
    """Of the first level's patches: random (published), raster, centre-out, or the patches' own
    numbers in the order wanted. Further down it stays random; an AR level is always raster."""

    def level_iterations(self, model: ModelConfig) -> tuple[int, ...]:
        """Steps for each level of a model. FractalError where they do not fit it."""
        tokens = tuple(level.tokens for level in model.levels)
        if not self.iterations:
            return tokens
        if len(self.iterations) != len(tokens):
            raise FractalError(
                f"iterations {list(self.iterations)} has {len(self.iterations)} entries: this "
                f"model has {len(tokens)} levels, give one for each"
            )
        for level, steps in zip(model.levels, self.iterations, strict=True):
            if level.generator == "mar" and steps > level.tokens:
                raise FractalError(
                    f"iterations {steps} asked of the level of {level.patch_size} px, which has "
                    f"{level.tokens} sub-patches: give 1 … {level.tokens}"
                )
        return tuple(
            steps if level.generator == "mar" else level.tokens
            for level, steps in zip(model.levels, self.iterations, strict=True)
        )
