"""What a person sets about the preparation of images."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fractal_model.common.strict import StrictModel


class PreparationConfig(StrictModel):
    """How registered sources are prepared."""

    max_quarantined_share: Annotated[float, Field(ge=0, le=1)]
    """Of the images; with more left out the preparation fails."""
    processes: Annotated[int, Field(ge=0)]
    """0: one a core."""
