"""How a registered model serves: with which weights and sampling settings.

It is a file of the registered version, so that what is served is what was registered; what is
promoted must have been evaluated in the same way.
"""

from __future__ import annotations

from typing import Literal

from fractal_model.common.strict import StrictModel
from fractal_model.config.sampling import SamplingConfig


class ServingConfig(StrictModel):
    weights: Literal["model", "ema"]
    """The weights themselves, or the moving average that training kept of them."""
    sampling: SamplingConfig
    """Where a request does not say."""

    def differences(self, other: ServingConfig) -> str:
        """What is another in `other`, on one line; "" where nothing is."""
        ours, theirs = (
            {"weights": each.weights, **each.sampling.model_dump()} for each in (self, other)
        )
        return ", ".join(
            f"{name} {ours[name]} instead of {theirs[name]}"
            for name in ours
            if ours[name] != theirs[name]
        )
