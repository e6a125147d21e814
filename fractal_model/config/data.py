"""The `preparation` section of params.yaml, and the names that data sets may not take."""

from typing import Annotated

from pydantic import Field

from fractal_model.common.strict import NUMBER, StrictModel

DIGITS, IMAGENET = "digits", "imagenet"
"""The data set that lies in scikit-learn, and the source whose classes and counts are known."""
IMAGENET_SIDES = {"imagenet64": 64, "imagenet256": 256}
"""The data sets that the paper measures, with the side of their images."""


class PreparationConfig(StrictModel):
    """How registered sources are prepared."""

    max_quarantined_share: Annotated[float, Field(ge=0, le=1), NUMBER]
    """Largest share of the images that may be left out; with more the preparation fails."""
    processes: Annotated[int, Field(ge=0, le=1024), NUMBER]
    """Processes that prepare images; 0: one for each core."""
