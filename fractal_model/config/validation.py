"""The `validation` part of a size's training settings: what is measured while it trains."""

from typing import Annotated

from pydantic import Field

from fractal_model.common.strict import NUMBER, Seed, StrictModel

MOST_PASSES = 10_000
Images = Annotated[int, Field(ge=1, le=1_000_000), NUMBER]


class ValidationConfig(StrictModel):
    """How the weights of a run in progress are measured. None of it changes the weights."""

    images: Images = 1000
    """Held-out images, the same ones each time; all of the split if it has fewer."""
    passes: Annotated[int, Field(ge=1, le=MOST_PASSES), NUMBER] = 4
    """Passes for each image; an AR model's likelihood is exact after one."""
    grid_classes: Images = 8
    """Rows of the sample grid: as many classes, evenly spread."""
    grid_columns: Images = 8
    """Samples of each class, with the same seeds each time."""
    timeout_seconds: Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False), NUMBER] = 600
    """Longest time that one validation may take; a longer one is ended, and its point is absent."""
    seed: Seed = 0
    """Chooses images, masks and samples."""
