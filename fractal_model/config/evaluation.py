"""The sections `evaluation`, `promotion`, `nightly` and `sweep` of params.yaml."""

from itertools import product
from math import prod
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import Field, field_validator, model_validator

from fractal_model.common.strict import NUMBER, Seed, StrictModel
from fractal_model.config.sampling import Guidance, Iterations, LogitScale, SamplingConfig
from fractal_model.config.training import MOST_WORKERS

MOST_PASSES = 10_000
MOST_SETTINGS = 1_000
"""Largest number of combinations that a sweep tries."""
_VALUES = Field(min_length=1, max_length=MOST_SETTINGS)
Factor = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False), NUMBER]
Images = Annotated[int, Field(ge=1, le=1_000_000), NUMBER]
TwoOrMore = Annotated[int, Field(ge=2, le=100_000), NUMBER]


class EvaluationConfig(StrictModel):
    """How models of one size are evaluated."""

    weights: Literal["model", "ema"]
    """Which weights are evaluated: the model's own, or training's moving average of them."""
    likelihood_passes: Annotated[int, Field(ge=1, le=MOST_PASSES), NUMBER]
    """Forward passes an image; an AR model's likelihood is exact and takes one."""
    samples_per_class: Images
    preview_per_class: Images
    """Samples of a class for a preview, whose metrics bear their number in their names."""
    batch_size: Images
    kid_subset_size: TwoOrMore
    kid_subsets: Annotated[int, Field(ge=1, le=100_000), NUMBER]
    fid_resamples: TwoOrMore
    """Bootstrap sets for the standard error of the FID."""
    workers: Annotated[int, Field(ge=0, le=MOST_WORKERS), NUMBER] = 1
    """Ray workers that share the work; 0: as many as the cluster has room for."""
    seed: Seed
    """Seed of the first sampled image; the seeds of the next ones count up."""


class PromotionConfig(StrictModel):
    """How much better than the champion a candidate must be, in standard errors."""

    fid_standard_errors: Factor = 1.0
    """Combined standard errors of both FIDs by which the FID must be lower; 0: just lower."""
    nll_standard_errors: Factor = 1.0
    """Standard errors of its own by which bits per dimension may be higher; 0: not at all."""


class NightlyConfig(StrictModel):
    """The schedule of the deployment `nightly-evaluation/all`."""

    cron: str = "0 1 * * *"
    """When a night starts: minute, hour, day of the month, month, day of the week."""
    timezone: str = "UTC"
    """IANA time zone in which `cron` is read, such as Europe/Berlin."""
    budget_hours: Annotated[float, Field(gt=0, le=24, allow_inf_nan=False), NUMBER] = 6.0
    """Hours from the night's start within which an evaluation must end to be started."""
    notification_block: str | None = None
    """Prefect's block for messages, such as slack-webhook/on-call; None: no message is sent."""

    @field_validator("cron")
    @classmethod
    def _five_fields(cls, cron: str) -> str:
        if len(cron.split()) != 5:
            raise ValueError("a cron line has 5 fields, as 0 1 * * *")
        return cron

    @field_validator("timezone")
    @classmethod
    def _known(cls, timezone: str) -> str:
        try:
            ZoneInfo(timezone)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError("no such time zone, give one as Europe/Berlin or UTC") from error
        return timezone

    @field_validator("notification_block")
    @classmethod
    def _type_and_name(cls, block: str | None) -> str | None:
        if block is not None and not all(block.partition("/")):
            raise ValueError("give the block's type and name, as slack-webhook/on-call")
        return block

    @property
    def budget_seconds(self) -> float:
        return self.budget_hours * 3600


class SweepConfig(StrictModel):
    """The values of which `sweep-guidance/<size>` tries all combinations."""

    guidance: Annotated[tuple[Guidance, ...], _VALUES] = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0)
    logit_scale: Annotated[tuple[LogitScale, ...], _VALUES] = (1.0, 1.05, 1.1)
    iterations: Annotated[tuple[Iterations, ...], Field(max_length=MOST_SETTINGS)] = ()
    """Steps of each level, from the top; empty: those of the size's sampling settings."""
    samples: Annotated[int, Field(ge=1, le=100_000_000), NUMBER] = 60_000
    """Images of all previews together; the full protocol's come on top."""
    keep: Annotated[int, Field(ge=2, le=MOST_SETTINGS), NUMBER] = 3
    """Of how many settings a round keeps one; the next has that many times the images of each."""

    @model_validator(mode="after")
    def _not_too_many(self) -> Self:
        lists = (self.guidance, self.logit_scale, self.iterations or (None,))
        if (combinations := prod(map(len, lists))) > MOST_SETTINGS:
            raise ValueError(
                f"{combinations:,} combinations of guidance, logit_scale and iterations: give "
                f"fewer values, of at most {MOST_SETTINGS:,} combinations"
            )
        return self

    def settings(self, sampling: SamplingConfig) -> tuple[SamplingConfig, ...]:
        """Each combination once; what a sweep does not vary is as in `sampling`."""
        names = ("iterations", "logit_scale", "guidance")
        iterations = self.iterations or (sampling.iterations,)
        combinations = product(iterations, self.logit_scale, self.guidance)
        updates = (dict(zip(names, values, strict=True)) for values in combinations)
        return tuple(dict.fromkeys(sampling.model_copy(update=update) for update in updates))
