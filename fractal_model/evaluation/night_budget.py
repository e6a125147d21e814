"""Which evaluations of a night fit its time, and what a person sets about it.

Decided here: a forecast errs on the long side, as an evaluation that was begun is not cut off.
"""

from collections.abc import Sequence
from dataclasses import dataclass

UNKNOWN_SHARE = 0.5
"""Of the budget: an evaluation of which nothing is known begins while so much is left. It may take
hours; as those that wait come first, it has all of the budget on another night."""


@dataclass(frozen=True)
class EarlierEvaluation:
    """What an earlier evaluation took."""

    samples: int
    seconds: float
    """From its start to its end, likelihood and features included."""


def forecast_seconds(earlier: Sequence[EarlierEvaluation], samples: int) -> float | None:
    """How long an evaluation of so many samples takes, by earlier ones of the same size: as the
    longest of as many samples, else by the most seconds per image. None: nothing is known."""
    same = [each.seconds for each in earlier if each.samples == samples]
    if same:
        return max(same)
    # With fewer images the likelihood still takes its time.
    scaled = [each.seconds * max(1.0, samples / each.samples) for each in earlier]
    return max(scaled, default=None)


def fits_budget(seconds_left: float, forecast: float | None, budget: float) -> bool:
    """Whether an evaluation is begun, by the seconds of the budget that are left; one of which
    nothing is known is while `UNKNOWN_SHARE` of the budget is left."""
    needed = UNKNOWN_SHARE * budget if forecast is None else forecast
    return 0 < seconds_left >= needed
