"""Propose what training does to the weights: epochs, batch, learning rate, regularisation.

Decided here: two recipes are known to be good, the one of `digits` (33,000 images seen, width 128)
and the published one of `mar-64` (1.02 billion, width 1024). What grows with the number of images
seen or with the width is a power law through these two, so each of them is proposed again for its
own case.
"""

import math
from dataclasses import dataclass

from fractal_model.config.mask_ratio import MaskRatio
from fractal_model.config.model import ModelConfig
from fractal_model.config.training import OptimizerName, TrainingConfig
from fractal_model.sizing.choices import Choice, Entry, ImageSet
from fractal_model.sizing.machine import Machine

FEW_IMAGES = 10_000
"""Below this number of training images a model overfits, so the held-out likelihood decides."""
_DIGITS_SEEN, _DIGITS_BATCH, _DIGITS_WIDTH, _DIGITS_RATE = 33_000, 32, 128, 2e-3
_PUBLISHED_SEEN, _PUBLISHED_BATCH, _PUBLISHED_WIDTH, _PUBLISHED_RATE = 1.02e9, 2048, 1024, 4e-4
_WARMUP_SHARE, _WARMUP_STEPS = 0.05, 140
"""Share of the epochs that is published for warm-up, and steps of the warm-up of digits."""
_LONGEST_WARMUP = 0.2
_FEW_STEPS = 2_000
"""Below this number of steps AdamW's first moment averages over fewer steps, as in digits."""
_DECAYS, _AVERAGED_SHARE = (0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999), 0.1
"""Decays of a moving average, and the largest share of a training's steps that it spans."""
_KEPT = ("weight_decay", "clip_norm", "ema_decays", "label_drop")
"""Settings that are taken from the size that a proposal follows."""
_OPTIONS = ("optimizer", "mask_ratio", "context_noise")
"""Settings that are taken from that size too, and left out at their published defaults."""


@dataclass(frozen=True)
class Plan:
    """What the parts of a recipe share."""

    images: ImageSet
    machine: Machine
    model: ModelConfig
    epochs: int
    seconds: float
    """Seconds that the training takes, as far as is known."""
    most_at_a_time: int
    """Largest number of images that a worker may compute at a time."""
    optimizer: OptimizerName = "adamw"
    mask_ratio: MaskRatio = "published"

    @property
    def seen(self) -> int:
        """Number of images that training sees."""
        return self.epochs * self.images.train


def propose_recipe(plan: Plan, flip: bool, like: TrainingConfig | None = None) -> Entry:
    """The settings of `training` that decide the weights. Those that neither the data nor the
    machine decide come from `like` or, if it is None, from `digits` and the paper."""
    batch = propose_batch_size(plan.images.train, plan.seen)
    steps = max(1, round(plan.seen / batch))
    few_steps, few_images = steps < _FEW_STEPS, plan.images.train < FEW_IMAGES
    entry = {
        "batch_size": Choice(batch, f"{steps:,} steps for {plan.seen:,} images seen"),
        "warmup_epochs": _propose_warmup(plan, batch),
        "base_learning_rate": _propose_rate(plan.model.levels[0].width, batch),
        "weight_decay": Choice(0.05, "as published"),
        "betas": Choice(
            [0.8 if few_steps else 0.9, 0.95],
            "as digits: shorter memory for few steps" if few_steps else "as published",
        ),
        "clip_norm": Choice(3.0, "as published"),
        "ema_decays": Choice([], "as published"),
        "label_drop": Choice(0.2, "as digits; 0.1 is for many images")
        if few_images
        else Choice(0.1, "as published"),
        "flip": Choice(flip, "as asked" if flip else "letters and signs must not be mirrored"),
    }
    if like is None and plan.model.is_autoregressive and few_images:
        entry |= _propose_regularisation(steps)
    if like is not None:
        rows = like.model_copy(update={"ema_decays": list(like.ema_decays)})
        options = like.model_dump(include=set(_OPTIONS)).keys()
        kept = (*_KEPT, *(key for key in _OPTIONS if key in options))
        entry |= {key: Choice(getattr(rows, key), "of the size to follow") for key in kept}
        entry["flip"] = Choice(flip or like.flip, "as asked" if flip else "of the size to follow")
    return entry


def _propose_regularisation(steps: int) -> Entry:
    """What helps an AR model most on few images (see docs/studies/digits-ar-likelihood.md)."""
    decay = max((d for d in _DECAYS if 1 / (1 - d) <= _AVERAGED_SHARE * steps), default=_DECAYS[0])
    return {
        "ema_decays": Choice([decay], f"averages about {round(1 / (1 - decay)):,} steps"),
        "context_noise": Choice(0.1, "as digits-nll: an AR model overfits few images"),
    }


def propose_batch_size(train: int, seen: int) -> int:
    """Images of one step: a power of two that grows with the number of images seen, and at most a
    quarter of the `train` images."""
    batch = _interpolate(seen, (_DIGITS_SEEN, _DIGITS_BATCH), (_PUBLISHED_SEEN, _PUBLISHED_BATCH))
    power = round(math.log2(min(max(batch, _DIGITS_BATCH), _PUBLISHED_BATCH)))
    return int(2 ** min(power, math.floor(math.log2(max(1, train / 4)))))


def _propose_warmup(plan: Plan, batch: int) -> Choice:
    in_epochs = math.ceil(_WARMUP_STEPS * batch / plan.images.train)
    published = math.ceil(_WARMUP_SHARE * plan.epochs)
    warmup = min(max(in_epochs, published), int(_LONGEST_WARMUP * plan.epochs))
    reason = "a twentieth of the epochs, as published"
    if warmup != published:
        reason = f"about {_WARMUP_STEPS} steps, as digits; at most a fifth"
    return Choice(warmup, reason)


def _propose_rate(width: int, batch: int) -> Choice:
    peak = _interpolate(
        min(max(width, _DIGITS_WIDTH), _PUBLISHED_WIDTH),
        (_DIGITS_WIDTH, _DIGITS_RATE),
        (_PUBLISHED_WIDTH, _PUBLISHED_RATE),
    )
    base = float(f"{peak * 256 / batch:.2g}")
    reason = f"peak {base * batch / 256:.2g}; narrow models bear more"
    return Choice(base, reason)


def _interpolate(at: float, low: tuple[float, float], high: tuple[float, float]) -> float:
    """Value at `at` of the power law through two points (x, y)."""
    exponent = math.log(high[1] / low[1]) / math.log(high[0] / low[0])
    return low[1] * (at / low[0]) ** exponent
