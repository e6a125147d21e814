"""The `validation` part of a size's training settings: what is measured during training."""

from typing import Annotated

from pydantic import Field

from fractal_model.common.strict import NUMBER, Seed, StrictModel

MOST_PASSES = 10_000
Images = Annotated[int, Field(ge=1, le=1_000_000), NUMBER]


class ValidationConfig(StrictModel):
    """How the weights of a run in progress are measured. No setting here changes the weights."""

    images: Images = 1000
    """Number of held-out images, the same ones each time; a split with fewer is measured whole."""
    passes: Annotated[int, Field(ge=1, le=MOST_PASSES), NUMBER] = 4
    """Number of passes averaged for an image's likelihood. For an AR model one pass is exact."""
    grid_classes: Images = 8
    """Number of rows of the sample grid. Each row has one class; the classes are evenly spread."""
    grid_columns: Images = 8
    """Number of columns of the sample grid: samples of one class, with the same seeds each time."""
    timeout_seconds: Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False), NUMBER] = 600
    """Longest time of one validation in seconds; a longer one is stopped and gives no metrics."""
    seed: Seed = 0
    """Seed that chooses the held-out images, the masks and the samples."""
