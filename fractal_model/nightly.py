"""Which evaluations of a night fit its time, and what a person sets about it.

Decided here: a forecast errs on the long side, as an evaluation that was begun is not cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import Field, field_validator

from fractal_model.common.strict import StrictModel

SECONDS_PER_HOUR = 3600.0
UNKNOWN_SHARE = 0.5
"""Of the budget: an evaluation of which nothing is known begins while so much is left. It may take
hours; as those that wait come first, it has all of the budget on another night."""


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


@dataclass(frozen=True)
class Measured:
    """What an earlier evaluation took."""

    samples: int
    seconds: float
    """From its start to its end, likelihood and features included."""


def forecast_seconds(earlier: Sequence[Measured], samples: int) -> float | None:
    """How long an evaluation of so many samples takes, by earlier ones of the same size: as the
    longest of as many samples, else by the most seconds per image. None: nothing is known."""
    same = [each.seconds for each in earlier if each.samples == samples]
    if same:
        return max(same)
    # With fewer images the likelihood still takes its time.
    scaled = [each.seconds * max(1.0, samples / each.samples) for each in earlier]
    return max(scaled, default=None)


def fits(seconds_left: float, forecast: float | None, budget: float) -> bool:
    """Whether an evaluation is begun, by the seconds of the budget that are left; one of which
    nothing is known is while `UNKNOWN_SHARE` of the budget is left."""
    needed = UNKNOWN_SHARE * budget if forecast is None else forecast
    return 0 < seconds_left >= needed
