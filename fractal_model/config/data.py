"""The section `preparation` of params.yaml, and what is known of data sets before they exist."""

from typing import Annotated

from pydantic import Field

from fractal_model.common.errors import FractalError
from fractal_model.common.strict import NUMBER, StrictModel

DIGITS, IMAGENET, OPENMOJI = "digits", "imagenet", "openmoji"
"""Name of scikit-learn's data set of digits, name of the source ImageNet, which is prepared in the
way of published results, and name of the source of OpenMoji's pictures."""
DIGITS_IMAGES, DIGITS_CLASSES = 1797, 10
IMAGENET_SIDES = {"imagenet64": 64, "imagenet256": 256}
"""The data sets of the paper, with the side of their images in pixels."""


def digits_split_sizes(validation_images: int) -> dict[str, int]:
    """Number of images in each split of `digits`. FractalError: a split has fewer images than there
    are classes."""
    most = DIGITS_IMAGES - DIGITS_CLASSES
    if not DIGITS_CLASSES <= validation_images <= most:
        raise FractalError(
            f"validation_images is {validation_images}, expected {DIGITS_CLASSES} to {most}: "
            f"digits has {DIGITS_IMAGES} images and each split needs every class"
        )
    return {"train": DIGITS_IMAGES - validation_images, "validation": validation_images}


class PreparationConfig(StrictModel):
    """Settings of the preparation of registered sources."""

    max_quarantined_share: Annotated[float, Field(ge=0, le=1), NUMBER]
    """Largest share (0 … 1) of images that may be quarantined; with more, preparation fails."""
    processes: Annotated[int, Field(ge=0, le=1024), NUMBER]
    """Number of processes that prepare images; 0: one for each core."""
