"""How models are evaluated: protocol, promotion, nights, sweeps, a section of params.yaml each."""

from __future__ import annotations

from itertools import product
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from pydantic import Field, field_validator

from fractal_model.common.strict import PositiveInt, StrictModel
from fractal_model.config.sampling import STRONGEST, FiniteFloat, SamplingConfig

SECONDS_PER_HOUR = 3600.0
Factor = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class EvaluationConfig(StrictModel):
    """Protocol of one size."""

    weights: Literal["model", "ema"]
    """The weights themselves, or the moving average that training kept of them."""
    likelihood_passes: PositiveInt
    """Forward passes an image; an AR model's likelihood is exact and takes one."""
    samples_per_class: PositiveInt
    preview_per_class: PositiveInt
    """Of a quick look, whose metrics bear the count in their names."""
    batch_size: PositiveInt
    kid_subset_size: Annotated[int, Field(ge=2)]
    kid_subsets: PositiveInt
    fid_resamples: Annotated[int, Field(ge=2)]
    """Bootstrap sets behind the standard error of the FID."""
    workers: Annotated[int, Field(ge=0)] = 1
    """Ray workers that share the work; 0: as many as the cluster has room for."""
    seed: Annotated[int, Field(ge=0)]
    """Seed of the first sampled image; the next ones count up."""


class PromotionConfig(StrictModel):
    """How sure a candidate must be better, in standard errors."""

    fid_standard_errors: Factor = 1.0
    """FID must be lower by more than so many of the errors of both, combined; 0: just lower."""
    nll_standard_errors: Factor = 1.0
    """The likelihood may be worse by at most so many of its own; 0: not at all."""


class NightlyConfig(StrictModel):
    """Of the deployment `nightly-evaluation/all`."""

    cron: str = "0 1 * * *"
    """Minute, hour, day of the month, month, day of the week."""
    timezone: str = "UTC"
    """Of the cron line, as Europe/Berlin."""
    budget_hours: Annotated[float, Field(gt=0, le=24, allow_inf_nan=False)] = 6.0
    """No evaluation is begun that would not end within so many hours from the start."""
    notification_block: str | None = None
    """A notification block of Prefect, as slack-webhook/on-call; None: no message is sent."""

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
        return self.budget_hours * SECONDS_PER_HOUR


class SweepConfig(StrictModel):
    """What `sweep-guidance/<size>` tries, all combinations."""

    guidance: Annotated[
        tuple[Annotated[FiniteFloat, Field(ge=0, le=STRONGEST)], ...], Field(min_length=1)
    ] = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0)
    logit_scale: Annotated[
        tuple[Annotated[FiniteFloat, Field(gt=0, le=STRONGEST)], ...], Field(min_length=1)
    ] = (1.0, 1.05, 1.1)
    iterations: tuple[tuple[PositiveInt, ...], ...] = ()
    """Steps of each level; empty: the size's own alone."""
    samples: PositiveInt = 60_000
    """Images of all previews together; those of the full protocol come on top."""
    keep: Annotated[int, Field(ge=2)] = 3
    """One setting in so many is looked at more closely, with so many times the images."""

    def settings(self, sampling: SamplingConfig) -> tuple[SamplingConfig, ...]:
        """Each combination once, the rest as in `sampling`."""
        given = product(self.iterations or (sampling.iterations,), self.logit_scale, self.guidance)
        found = (
            SamplingConfig(
                **{
                    **sampling.model_dump(),
                    "guidance": guidance,
                    "logit_scale": logit_scale,
                    "iterations": iterations,
                }
            )
            for iterations, logit_scale, guidance in given
        )
        return tuple(dict.fromkeys(found))
