"""The weights and sampling settings with which a registered model is served.

They are stored with the registered version, so that it is always served with them. A version is
promoted only if it was evaluated with the same settings.
"""

from __future__ import annotations

from fractal_model.common.errors import FractalError
from fractal_model.common.strict import StrictModel
from fractal_model.config.sampling import SamplingConfig
from fractal_model.config.weights import Weights


class ServingConfig(StrictModel):
    """Weights and sampling settings with which one registered version is served."""

    weights: Weights
    """Which weights are served: `model`, `ema` or a moving average such as `ema-0.999`."""
    sampling: SamplingConfig
    """Sampling settings for requests that do not give their own."""

    def require_no_guide(self) -> None:
        """Raise FractalError if the sampling settings name a guide. A registered version, a
        checkpoint and an exported folder hold one model, which must be enough to serve it."""
        if self.sampling.guide is not None:
            raise FractalError(
                f"the sampling settings have the guide {self.sampling.guide}, which is not stored "
                f"with a model: set guide to null, and give the guide where images are drawn"
            )

    def differences(self, other: ServingConfig) -> str:
        """The settings that differ from those of `other`, with both values, on one line; "" if all
        are equal."""
        ours, theirs = ({"weights": c.weights, **c.sampling.model_dump()} for c in (self, other))
        return ", ".join(
            f"{name} {ours[name]} instead of {theirs[name]}"
            for name in ours
            if ours[name] != theirs[name]
        )
