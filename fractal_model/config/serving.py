"""The weights and sampling settings with which a registered model is served.

They are a file of the registered version, so that a version is served as it was registered; it is
promoted only if it was evaluated with the same.
"""

from __future__ import annotations

from typing import Literal

from fractal_model.common.strict import StrictModel
from fractal_model.config.sampling import SamplingConfig


class ServingConfig(StrictModel):
    """How one registered version is served."""

    weights: Literal["model", "ema"]
    """Which weights are served: the model's own, or training's moving average of them."""
    sampling: SamplingConfig
    """Used for the settings that a request leaves out."""

    def differences(self, other: ServingConfig) -> str:
        """The settings that differ in `other`, on one line; "" where none do."""
        ours, theirs = (
            {"weights": each.weights, **each.sampling.model_dump()} for each in (self, other)
        )
        return ", ".join(
            f"{name} {ours[name]} instead of {theirs[name]}"
            for name in ours
            if ours[name] != theirs[name]
        )
