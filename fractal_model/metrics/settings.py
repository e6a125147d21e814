"""What an evaluation computes, from how many samples."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fractal_model.common.strict import PositiveInt, StrictModel


class EvaluationConfig(StrictModel):
    """Protocol of one size."""

    weights: Literal["model", "ema"]
    """The weights themselves, or the moving average that training kept of them."""
    likelihood_passes: PositiveInt
    """Forward passes an image; an AR model's likelihood is exact and takes one."""
    samples_per_class: PositiveInt
    preview_per_class: PositiveInt
    """Of a quick look, whose metrics bear the count in their names."""
    batch_size: PositiveInt
    kid_subset_size: Annotated[int, Field(ge=2)]
    kid_subsets: PositiveInt
    fid_resamples: Annotated[int, Field(ge=2)]
    """Bootstrap sets behind the standard error of the FID."""
    workers: Annotated[int, Field(ge=0)] = 1
    """Ray workers that share the work; 0: as many as the cluster has room for."""
    seed: Annotated[int, Field(ge=0)]
    """Seed of the first sampled image; the next ones count up."""
