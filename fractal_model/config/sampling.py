"""The section `sampling` of params.yaml: guidance, iterations, order."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from fractal_model.common.errors import FractalError
from fractal_model.common.strict import NUMBER, Flag, StrictModel
from fractal_model.config.model import LARGEST_SIDE, MOST_LEVELS, ModelConfig
from fractal_model.config.weights import ModelSource

OrderName = Literal["random", "raster", "centre-out", "halton"]
GuidanceSchedule = Literal["linear", "constant", "cosine"]

IterationCount = Annotated[int, Field(ge=1, le=LARGEST_SIDE**2), NUMBER]
Iterations = Annotated[tuple[IterationCount, ...], Field(max_length=MOST_LEVELS)]
Patch = Annotated[int, Field(ge=0, lt=LARGEST_SIDE**2), NUMBER]
Patches = Annotated[tuple[Patch, ...], Field(max_length=LARGEST_SIDE**2)]
PatchOrder = Annotated[
    Annotated[OrderName, Tag("name")] | Annotated[Patches, Tag("patches")],
    Discriminator(lambda value: "name" if isinstance(value, str) else "patches"),
]
"""Order in which level 0 generates sub-patches: a name, or all their row-major numbers."""

STRONGEST = 1000.0
"""Largest guidance and logit scale. Far above it float32 overflows and images have one colour."""
Guidance = Annotated[float, Field(ge=0, le=STRONGEST, allow_inf_nan=False), NUMBER]
LogitScale = Annotated[float, Field(gt=0, le=STRONGEST, allow_inf_nan=False), NUMBER]
Progress = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), NUMBER]


def _require_rising(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] >= interval[1]:
        raise ValueError("the first number must be below the second one, as in [0.2, 0.8]")
    return interval


GuidanceInterval = Annotated[tuple[Progress, Progress], AfterValidator(_require_rising)]
WHOLE_INTERVAL = (0.0, 1.0)


class SamplingConfig(StrictModel):
    """Settings of the sampling of images (paper, section 5 and appendix)."""

    guidance: Guidance = 1.0
    """Scale of classifier-free guidance; 1 is no guidance."""
    guidance_interval: Annotated[
        GuidanceInterval, Field(exclude_if=lambda value: value == WHOLE_INTERVAL)
    ] = WHOLE_INTERVAL
    """Progress of level 0, from 0 to 1, between which guidance applies (Kynkäänniemi et al., 2024).
    Outside, images are sampled without guidance, which is faster."""
    guidance_schedule: Annotated[
        GuidanceSchedule, Field(exclude_if=lambda value: value == "linear")
    ] = "linear"
    """How guidance changes with the progress of level 0. `linear` (as published): from 1 to
    `guidance`. `constant`: it is `guidance` everywhere. `cosine`: from 1 to `guidance`, slower at
    first (power-cosine)."""
    guide: Annotated[ModelSource | None, Field(exclude_if=lambda value: value is None)] = None
    """Weaker model that guides instead of the prediction without a class (autoguidance, Karras et
    al., 2024), such as an earlier checkpoint. Written as `start_from` of `training`; null: none."""
    logit_scale: LogitScale = 1.0
    """Factor on the logits, which the paper calls temperature; above 1 samples are more alike."""
    iterations: Iterations = ()
    """Number of iterations of each level, from level 0. Empty: one per sub-patch. An AR level
    always takes one per sub-patch; its number is ignored."""
    filter_threshold: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False), NUMBER] = 1e-4
    """Guidance cannot favour a value whose probability, as predicted with the class, is below this
    threshold."""
    compile: Flag = False
    """Compile AR levels (on a GPU only the last one) and, on a CPU, the pixel network below a MAR
    level. It takes a minute or more and needs a C++ compiler, so it pays only for many images. On a
    GPU the last level below another becomes a CUDA graph; a MAR level needs no compiler for it."""
    order: PatchOrder = "random"
    """Order in which a MAR level 0 generates its sub-patches: random (as published), raster,
    centre-out, halton (spread evenly, by a Halton sequence), or a list of all their numbers. Later
    MAR levels use random, AR levels raster."""

    def level_iterations(self, model: ModelConfig) -> tuple[int, ...]:
        """Number of iterations of each level of `model`. FractalError: the setting `iterations`
        does not fit the model."""
        tokens = [level.tokens for level in model.levels]
        if self.iterations and len(self.iterations) != len(tokens):
            raise FractalError(
                f"iterations {list(self.iterations)} has length {len(self.iterations)}: this "
                f"model takes {len(tokens)}, one for each level"
            )
        for i, (level, count) in enumerate(zip(model.levels, self.iterations, strict=False)):
            if level.generator == "mar" and count > level.tokens:
                raise FractalError(
                    f"iterations is {count} for the level of {level.patch_size} px, which has "
                    f"{level.tokens} sub-patches: give 1 … {level.tokens}"
                )
            tokens[i] = count if level.generator == "mar" else level.tokens
        return tuple(tokens)
