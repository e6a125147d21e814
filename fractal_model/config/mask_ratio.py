"""The setting `mask_ratio` of a training: the distribution from which MAR levels draw masks."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

Uniform = Literal["uniform"]
TruncatedNormal = Literal["published"] | Annotated[float, Field(gt=0, lt=1)]


def _require_mask_ratio(value: object) -> object:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1
    if not is_number and value not in ("published", "uniform"):
        raise ValueError("give published, uniform, or a number above 0 and below 1")
    return value


MaskRatio = Annotated[Uniform | TruncatedNormal, BeforeValidator(_require_mask_ratio)]


def lower_bound(mask_ratio: TruncatedNormal) -> float:
    """Smallest mask ratio of a truncated normal distribution."""
    return 0.0 if mask_ratio == "published" else mask_ratio
