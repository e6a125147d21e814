"""The sections `evaluation`, `promotion`, `nightly` and `sweep` of params.yaml."""

from collections.abc import Sequence
from datetime import datetime
from itertools import product
from math import prod
from typing import Annotated, Self
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from pydantic import Field, field_validator, model_validator

from fractal_model.common.strict import NUMBER, Seed, StrictModel
from fractal_model.config.sampling import (
    Guidance,
    GuidanceInterval,
    GuidanceSchedule,
    Iterations,
    LogitScale,
)
from fractal_model.config.serving import ServingConfig
from fractal_model.config.training import MOST_WORKERS
from fractal_model.config.validation import MOST_PASSES
from fractal_model.config.weights import MOST_AVERAGES, Weights

MOST_SETTINGS = 1_000
"""Largest number of settings (combinations of values) that one sweep may try."""
_VALUES = Field(min_length=1, max_length=MOST_SETTINGS)
Factor = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False), NUMBER]
Images = Annotated[int, Field(ge=1, le=1_000_000), NUMBER]
TwoOrMore = Annotated[int, Field(ge=2, le=100_000), NUMBER]


class EvaluationConfig(StrictModel):
    """Settings of the evaluation of one size."""

    weights: Weights
    """Which weights are evaluated: `model` for the trained weights, `ema` for their only moving
    average, or a moving average with its decay, such as `ema-0.999`."""
    likelihood_passes: Annotated[int, Field(ge=1, le=MOST_PASSES), NUMBER]
    """Number of passes averaged for an image's likelihood. For an AR model one pass is exact."""
    samples_per_class: Images
    """Samples of each class in a full evaluation."""
    preview_per_class: Images
    """Samples of each class in a preview. The names of a preview's metrics have the total number of
    samples, such as fid_5k."""
    batch_size: Images
    """Largest number of images that are sampled at a time."""
    kid_subset_size: TwoOrMore
    """Number of images in each random subset; KID is the mean over `kid_subsets` subsets."""
    kid_subsets: Annotated[int, Field(ge=1, le=100_000), NUMBER]
    """Number of random subsets over which KID is averaged."""
    fid_resamples: TwoOrMore
    """Number of bootstrap resamples from which the standard error of the FID is computed."""
    workers: Annotated[int, Field(ge=0, le=MOST_WORKERS), NUMBER] = 1
    """Number of Ray workers that share the work; 0: as many as the cluster has room for."""
    seed: Seed
    """Seed of image 0; image i is sampled with `seed + i`."""


class PromotionConfig(StrictModel):
    """The rule by which a candidate replaces the champion, in standard errors of the metrics."""

    fid_standard_errors: Factor = 1.0
    """Number of standard errors (candidate's and champion's combined) by which the candidate's FID
    must be lower than the champion's."""
    nll_standard_errors: Factor = 1.0
    """Number of the candidate's standard errors by which its bits per dimension may be above the
    champion's."""


class NightlyConfig(StrictModel):
    """The schedule of the deployment `nightly-evaluation/all`."""

    cron: str = "0 1 * * *"
    """Cron line of a night's start: minute, hour, day of the month, month, day of the week."""
    timezone: str = "UTC"
    """IANA time zone in which `cron` is read, such as Europe/Berlin."""
    budget_hours: Annotated[float, Field(gt=0, le=24, allow_inf_nan=False), NUMBER] = 6.0
    """Length of a night in hours; an evaluation that would end later is not started."""
    notification_block: str | None = None
    """TYPE/NAME of the Prefect block that sends a message after each night; null: no message."""

    @field_validator("cron")
    @classmethod
    def _require_cron_line(cls, cron: str) -> str:
        if len(cron.split()) != 5:
            raise ValueError("a cron line has 5 fields: give one such as 0 1 * * *")
        try:
            CronSim(cron, datetime.now())
        except CronSimError as error:
            raise ValueError(f"not a cron line ({error}): give one such as 0 1 * * *") from error
        return cron

    @field_validator("timezone")
    @classmethod
    def _require_time_zone(cls, timezone: str) -> str:
        try:
            ZoneInfo(timezone)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError("unknown time zone: give one such as Europe/Berlin") from error
        return timezone

    @field_validator("notification_block")
    @classmethod
    def _require_type_and_name(cls, block: str | None) -> str | None:
        if block is not None and not all(block.partition("/")):
            raise ValueError("give the block's type and name, such as slack-webhook/on-call")
        return block

    @property
    def budget_seconds(self) -> float:
        return self.budget_hours * 3600


class SweepConfig(StrictModel):
    """The values that the deployment `sweep-guidance/<size>` combines, and its budget of images."""

    guidance: Annotated[tuple[Guidance, ...], _VALUES] = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0)
    """Guidance scales to try."""
    logit_scale: Annotated[tuple[LogitScale, ...], _VALUES] = (1.0, 1.05, 1.1)
    """Factors on the logits to try."""
    guidance_interval: Annotated[
        tuple[GuidanceInterval, ...],
        Field(max_length=MOST_SETTINGS, exclude_if=lambda value: not value),
    ] = ()
    """Intervals of guidance to try. Empty: only that of the size's sampling settings."""
    guidance_schedule: Annotated[
        tuple[GuidanceSchedule, ...],
        Field(max_length=MOST_SETTINGS, exclude_if=lambda value: not value),
    ] = ()
    """Schedules of guidance to try. Empty: only that of the size's sampling settings."""
    iterations: Annotated[tuple[Iterations, ...], Field(max_length=MOST_SETTINGS)] = ()
    """Lists of iterations to try. Each has one number for each level. Empty: only the list in the
    size's sampling settings is used."""
    weights: Annotated[
        tuple[Weights, ...],
        Field(max_length=1 + MOST_AVERAGES, exclude_if=lambda value: not value),
    ] = ()
    """Weights to try, such as `model` and `ema-0.999`. Empty: only the weights that the size's
    evaluation uses."""
    samples: Annotated[int, Field(ge=1, le=100_000_000), NUMBER] = 60_000
    """Largest number of images that all previews of a sweep may draw together. The full evaluation
    of the best setting is not counted."""
    keep: Annotated[int, Field(ge=2, le=MOST_SETTINGS), NUMBER] = 3
    """Divisor of the number of settings after each round: 3 keeps the best third. In the next
    round, each setting draws `keep` times as many images."""

    @model_validator(mode="after")
    def _require_few_combinations(self) -> Self:
        lists = (
            self.guidance,
            self.logit_scale,
            self.guidance_interval or (None,),
            self.guidance_schedule or (None,),
            self.iterations or (None,),
            self.weights or (None,),
        )
        if (combinations := prod(map(len, lists))) > MOST_SETTINGS:
            raise ValueError(
                f"{combinations:,} combinations of guidance and the other lists: "
                f"give fewer values, for at most {MOST_SETTINGS:,} combinations"
            )
        return self

    def settings(self, served: ServingConfig) -> tuple[ServingConfig, ...]:
        """All combinations of the sweep's values, each once; those with equal weights follow each
        other. Settings that the sweep does not vary come from `served`."""
        own = served.sampling
        axes: dict[str, Sequence[object]] = {
            "iterations": self.iterations or (own.iterations,),
            "guidance_interval": self.guidance_interval or (own.guidance_interval,),
            "guidance_schedule": self.guidance_schedule or (own.guidance_schedule,),
            "logit_scale": self.logit_scale,
            "guidance": self.guidance,
        }
        updates = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
        samplings = dict.fromkeys(own.model_copy(update=update) for update in updates)
        weights = dict.fromkeys(self.weights or (served.weights,))
        return tuple(ServingConfig(weights=w, sampling=s) for w, s in product(weights, samplings))
