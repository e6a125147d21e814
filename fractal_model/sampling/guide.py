"""Guidance by a weaker model in place of the prediction without a class (autoguidance).

Decided here: the guide gets the class that the model gets (Karras et al., 2024). Its levels may
have other widths and numbers of blocks than the model's, but the same patches. Protocols and
fingerprints name a guide by the checksum of its weights, because what is at a place may change.
"""

from fractal_model.common.errors import FractalError
from fractal_model.config.model import ModelConfig
from fractal_model.config.sampling import SamplingConfig
from fractal_model.model.fractal import FractalModel, Guide


def require_guide(guide: ModelConfig, model: ModelConfig) -> None:
    """Raise FractalError with the first difference if `guide` cannot guide `model`."""
    theirs, ours = _patches(guide), _patches(model)
    for name, value in ours.items():
        if theirs[name] != value:
            raise FractalError(
                f"the guide's {name} is {theirs[name]}, the model's is {value}: choose a guide "
                f"that has the same patches, generators and classes"
            )
    if guide.class_names and model.class_names and guide.class_names != model.class_names:
        raise FractalError(
            "the guide has other class names than the model: choose a guide of the same data set"
        )


def _patches(model: ModelConfig) -> dict[str, object]:
    return {
        "image size": model.image_size,
        "list of patch sizes": [level.patch_size for level in model.levels],
        "list of generators": [level.generator for level in model.levels],
        "list of guiding pixels": [level.guiding_pixel for level in model.levels],
        "number of classes": model.num_classes,
    }


def pin_guide(settings: SamplingConfig, guide: Guide | None) -> SamplingConfig:
    """Return `settings` with the checksum of `guide` in place of its name."""
    if guide is None:
        return settings
    return settings.model_copy(update={"guide": f"sha256:{guide.checksum}"})


def networks_of(model: FractalModel, settings: SamplingConfig) -> list[FractalModel]:
    """Return the model and, if the settings name a guide, its guide, on the model's device.
    FractalError: the guide was not loaded with the model, or does not fit it."""
    if settings.guide is None:
        return [model]
    if model.guide is None:
        raise FractalError(
            f"the sampling settings have the guide {settings.guide}, but the model was loaded "
            f"without a guide: set guide to null"
        )
    require_guide(model.guide.model.config, model.config)
    return [model, model.guide.model.to(model.device)]
