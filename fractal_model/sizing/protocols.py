"""Propose how images are drawn from a size, and how it is measured.

Decided here: as many samples as training images, at most the 50,000 of the published protocol, and
on a slow machine no more than can be drawn in half of the training time, but 100 at least.
"""

import math

from fractal_model.config.model import ModelConfig
from fractal_model.config.sampling import SamplingConfig
from fractal_model.sizing.choices import Choice, Entry, ImageSet
from fractal_model.sizing.machine import Machine

PUBLISHED_SAMPLES = 50_000
_FEWEST_SAMPLES = 100
_MANY_CLASSES = 100
"""From this number of classes on, the guidance of the published models is proposed."""
_BATCH_PIXELS, _MOST_IN_BATCH = 1 << 18, {False: 256, True: 1024}
_SHARE_OF_TRAINING = 0.5


def propose_sampling(model: ModelConfig, like: SamplingConfig | None = None) -> Entry:
    """The entry of `sampling`: that of `like`, or one for a new architecture."""
    if like is not None:
        return {
            key: Choice(value, "of the size to follow")
            for key, value in like.model_dump(mode="json", exclude_defaults=True).items()
        }
    classes, tokens = model.num_classes, [level.tokens for level in model.levels]
    if classes == 1:
        guidance = Choice(1.0, "off: there is only one class")
    elif classes < _MANY_CLASSES:
        guidance = Choice(2.0, "as digits; a sweep finds the best")
    else:
        guidance = Choice(6.5, "as mar-64; a sweep finds the best")
    iterations = tokens
    if not model.is_autoregressive:
        iterations = [min(tokens[0], 64), *(min(count, 16) for count in tokens[1:])]
    return {
        "guidance": guidance,
        "logit_scale": Choice(1.1, "as digits")
        if classes < _MANY_CLASSES
        else Choice(1.02, "as mar-64"),
        "iterations": Choice(iterations, "one for each sub-patch; with mar at most 64 and 16"),
        "filter_threshold": Choice(1e-4, "as published"),
    }


def propose_evaluation(
    images: ImageSet,
    machine: Machine,
    model: ModelConfig,
    *,
    averages: int,
    training_seconds: float,
    sample_seconds: float,
) -> Entry:
    """The entry of `evaluation` of a training that keeps a number of moving `averages`.
    `sample_seconds`: seconds that drawing one image takes on the whole machine."""
    affordable = _SHARE_OF_TRAINING * training_seconds / sample_seconds
    limits = {
        "as many as training images": images.train,
        "as published": PUBLISHED_SAMPLES,
        "drawn in half the training time": affordable,
    }
    reason = min(limits, key=lambda limit: limits[limit])
    total = limits[reason]
    if total < _FEWEST_SAMPLES:
        reason, total = "the fewest for a rough FID", _FEWEST_SAMPLES
    per_class = max(1, round(total / images.classes))
    samples = per_class * images.classes
    subset = max(2, min(1000, min(samples, images.train) // 3))
    batch = min(_BATCH_PIXELS // images.resolution**2, _MOST_IN_BATCH[machine.gpus > 0])
    return {
        "weights": Choice("ema", "the average") if averages == 1 else Choice("model"),
        "likelihood_passes": Choice(1, "exact for ar")
        if model.is_autoregressive
        else Choice(10, "as published"),
        "samples_per_class": Choice(per_class, f"{samples:,} in all: {reason}"),
        "preview_per_class": Choice(math.ceil(per_class / 6), "a sixth, as digits"),
        "batch_size": Choice(max(1, batch), "at a time, by their pixels"),
        "kid_subset_size": Choice(subset, "a third of the samples, at most 1,000"),
        "kid_subsets": Choice(100, "as published"),
        "fid_resamples": Choice(100 if samples < 10_000 else 20),
        "workers": Choice(0 if machine.gpus > 1 else 1),
        "seed": Choice(0),
    }
