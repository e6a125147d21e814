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
    """Describe a setting on one line, such as `guidance 2, logit scale 1.1, weights ema-0.999`."""
    text = f"guidance {setting.sampling.guidance:g}, logit scale {setting.sampling.logit_scale:g}"
    return ", ".join([text, *(f"weights {name}" for name in _other_weights(setting, size))])


def _other_weights(setting: ServingConfig, size: Size) -> tuple[str, ...]:
    return () if setting.weights == size.evaluation.weights else (setting.weights,)
