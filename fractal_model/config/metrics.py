"""The section `metrics` of params.yaml: real images and feature networks of the sample metrics."""

from typing import Annotated

from pydantic import Field

from fractal_model.common.strict import NUMBER, NotEmpty, StrictModel

SampleSize = Annotated[int, Field(ge=4, le=2**31), NUMBER]


class MetricsConfig(StrictModel):
    """Number of real images that samples are compared with, and weights of the feature networks."""

    statistics_images: dict[str, SampleSize]
    """Number of training images in the FID reference, by name of the data set. A data set without
    an entry uses all its training images."""
    feature_sample: SampleSize
    """Number of training images with stored features, for KID, precision and recall."""
    inception_weights: NotEmpty
    """`auto`, `download`, or a path relative to params.yaml. `auto`: torch-fidelity's weights if
    they are cached, else those of an installed package. The Inception Score needs torch-fidelity's
    weights."""
    dinov2_weights: NotEmpty | None = None
    """Path of timm's DINOv2 weights, relative to params.yaml; null: no FD-DINOv2."""
