"""The `sampling` section of params.yaml: guidance, iterations, order."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from fractal_model.common.errors import FractalError
from fractal_model.common.strict import NUMBER, StrictModel
from fractal_model.config.model import LARGEST_SIDE, MOST_LEVELS, ModelConfig

OrderName = Literal["random", "raster", "centre-out"]

Steps = Annotated[int, Field(ge=1, le=LARGEST_SIDE**2), NUMBER]
Iterations = Annotated[tuple[Steps, ...], Field(max_length=MOST_LEVELS)]
Patch = Annotated[int, Field(ge=0, lt=LARGEST_SIDE**2), NUMBER]
Patches = Annotated[tuple[Patch, ...], Field(max_length=LARGEST_SIDE**2)]
PatchOrder = Annotated[
    Annotated[OrderName, Tag("name")] | Annotated[Patches, Tag("patches")],
    Discriminator(lambda value: "name" if isinstance(value, str) else "patches"),
]
"""A name, or the row-major numbers of all patches of the first level in the order to generate."""

STRONGEST = 1000.0
"""Largest guidance and logit scale; far above, float32 overflows and images are of one colour."""
Guidance = Annotated[float, Field(ge=0, le=STRONGEST, allow_inf_nan=False), NUMBER]
LogitScale = Annotated[float, Field(gt=0, le=STRONGEST, allow_inf_nan=False), NUMBER]


class SamplingConfig(StrictModel):
    """How images are sampled (paper, section 5 and appendix)."""

    guidance: Guidance = 1.0
    """Scale of classifier-free guidance; 1 is no guidance."""
    logit_scale: LogitScale = 1.0
    """Factor of the logits, which the paper calls temperature; above 1 it sharpens."""
    iterations: Iterations = ()
    """Steps of each level, from the top; an AR level always takes one a sub-patch. Empty: one
    sub-patch at a time at every level."""
    filter_threshold: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False), NUMBER] = 1e-4
    """Conditional probability below which guidance may not raise a value."""
    compile: bool = False
    """Compile AR levels (on a GPU the innermost alone) and, on a CPU, the pixels below a MAR level.
    It takes a minute or more at the start, pays from some tens of images on, and needs a C++
    compiler."""
    order: PatchOrder = "random"
    """Order of the first level's patches: random (published), raster, centre-out, or all their
    numbers. Further down it stays random; an AR level is always raster."""

    def level_iterations(self, model: ModelConfig) -> tuple[int, ...]:
        """Steps for each level of a model. FractalError where they do not fit it."""
        tokens = [level.tokens for level in model.levels]
        if self.iterations and len(self.iterations) != len(tokens):
            raise FractalError(
                f"iterations {list(self.iterations)} has length {len(self.iterations)}: this "
                f"model takes {len(tokens)}, one for each level"
            )
        for i, (level, steps) in enumerate(zip(model.levels, self.iterations, strict=False)):
            if level.generator == "mar" and steps > level.tokens:
                raise FractalError(
                    f"iterations {steps} asked of the level of {level.patch_size} px, which has "
                    f"{level.tokens} sub-patches: give 1 … {level.tokens}"
                )
            tokens[i] = steps if level.generator == "mar" else level.tokens
        return tuple(tokens)
