"""The section `preparation` of params.yaml, and the names that data sets may not take."""

from typing import Annotated

from pydantic import Field

from fractal_model.common.strict import NUMBER, StrictModel

DIGITS, IMAGENET, OPENMOJI = "digits", "imagenet", "openmoji"
"""Name of scikit-learn's data set of digits, name of the source ImageNet, which is prepared in the
way of published results, and name of the source of OpenMoji's pictures."""
IMAGENET_SIDES = {"imagenet64": 64, "imagenet256": 256}
"""The data sets of the paper, with the side of their images in pixels."""


class PreparationConfig(StrictModel):
    """Settings of the preparation of registered sources."""

    max_quarantined_share: Annotated[float, Field(ge=0, le=1), NUMBER]
    """Largest share (0 … 1) of images that may be quarantined; with more, preparation fails."""
    processes: Annotated[int, Field(ge=0, le=1024), NUMBER]
    """Number of processes that prepare images; 0: one for each core."""
