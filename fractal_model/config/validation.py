"""The `validation` part of a size's training settings: what is measured during training."""

from typing import Annotated, Self

from pydantic import Field

from fractal_model.common.strict import LARGEST_SEED, NUMBER, StrictModel

MOST_PASSES = 10_000
MOST_IN_GRID = 100
GridSide = Annotated[int, Field(ge=1, le=MOST_IN_GRID), NUMBER]
Images = Annotated[int, Field(ge=1, le=1_000_000), NUMBER]
_MAX_SHARE = 0.05


class ValidationConfig(StrictModel):
    """How the weights of a run in progress are measured. No setting here changes the weights."""

    images: Images = 1000
    """Number of held-out images, the same in each validation; a smaller split is used whole."""
    passes: Annotated[int, Field(ge=1, le=MOST_PASSES), NUMBER] = 4
    """Number of passes averaged for an image's likelihood. For an AR model one pass is exact."""
    grid_classes: GridSide = 8
    """Number of rows of the sample grid. Each row has one class; the classes are evenly spread."""
    grid_columns: GridSide = 8
    """Number of columns of the sample grid: samples of a class, with the same seeds each time."""
    timeout_seconds: Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False), NUMBER] = 600
    """Longest time of one validation in seconds; a longer one is stopped and gives no metrics."""
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED - MOST_IN_GRID**2), NUMBER] = 0
    """Seed that chooses the held-out images, the masks and the samples."""
    max_share: Annotated[
        float,
        Field(gt=0, le=1, allow_inf_nan=False, exclude_if=lambda value: value == _MAX_SHARE),
        NUMBER,
    ] = _MAX_SHARE
    """Largest share of the training time that workers spend on validation: on waiting for it, or on
    measuring if there is no GPU beside theirs."""
    preview_every: Annotated[
        int, Field(ge=0, le=1_000_000, exclude_if=lambda value: value == 0), NUMBER
    ] = 0
    """Number of validations from one preview FID to the next; 0: none. A preview needs a GPU beside
    those of the workers, or a training on CPUs."""

    def without_operational_settings(self) -> Self:
        """A copy with fixed values for the settings that do not decide the held-out likelihood."""
        fixed = ("grid_classes", "grid_columns", "timeout_seconds", "max_share", "preview_every")
        return self.model_copy(update={name: getattr(type(self)(), name) for name in fixed})
