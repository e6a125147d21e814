"""The name and the fingerprint of one setting that a sweep tries.

Decided here: weights are part of them only if they are not those of the size's evaluation. So a
sweep that tries no other weights continues with the runs and samples of earlier versions.
"""

from fractal_model.common.fingerprint import fingerprint
from fractal_model.config.params import Size
from fractal_model.config.serving import ServingConfig


def setting_fingerprint(setting: ServingConfig, size: Size) -> str:
    """SHA-256 of a setting's sampling settings and, if they differ from those of the size's
    evaluation, of its weights."""
    return fingerprint(setting.sampling, *_other_weights(setting, size))


def describe_setting(setting: ServingConfig, size: Size) -> str:
    """Describe a setting on one line, such as `guidance 2, logit scale 1.1, weights ema-0.999`. An
    interval or schedule of guidance is part of it if it is not the size's."""
    sampling, own = setting.sampling, size.sampling
    parts = [f"guidance {sampling.guidance:g}", f"logit scale {sampling.logit_scale:g}"]
    if sampling.guidance_interval != own.guidance_interval:
        parts.append("interval {:g} … {:g}".format(*sampling.guidance_interval))
    if sampling.guidance_schedule != own.guidance_schedule:
        parts.append(f"schedule {sampling.guidance_schedule}")
    return ", ".join([*parts, *(f"weights {name}" for name in _other_weights(setting, size))])


def _other_weights(setting: ServingConfig, size: Size) -> tuple[str, ...]:
    return () if setting.weights == size.evaluation.weights else (setting.weights,)
