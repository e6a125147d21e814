"""Which evaluations fit the time budget of a night.

Decided here: a forecast is rather too long than too short, because a started evaluation is not
interrupted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

UNKNOWN_SHARE = 0.5
"""Share of the night's budget that must be left to start an evaluation without a forecast, because
such an evaluation may take hours. Otherwise it waits and is the first of the next night."""


@dataclass(frozen=True)
class EarlierEvaluation:
    """Number of samples and duration of an earlier evaluation."""

    samples: int
    seconds: float
    """Duration from start to end, likelihood and features included."""


def forecast_seconds(earlier: Sequence[EarlierEvaluation], samples: int) -> float | None:
    """Return the expected seconds of an evaluation with `samples` samples; None if there are no
    `earlier` evaluations of the size. If some of them had as many samples, it is the longest time
    of these. Otherwise each earlier time is scaled up to `samples` (never down), and the longest is
    returned."""
    same_count = [run.seconds for run in earlier if run.samples == samples]
    if same_count:
        return max(same_count)
    # The likelihood takes as long with fewer samples, so times are never scaled down.
    scaled = [run.seconds * max(1.0, samples / run.samples) for run in earlier]
    return max(scaled, default=None)


def fits_budget(seconds_left: float, forecast: float | None, budget: float) -> bool:
    """True if an evaluation that is expected to take `forecast` seconds may start. `seconds_left`
    is what is left of the night's `budget`, which is in seconds too. If `forecast` is None, the
    share `UNKNOWN_SHARE` of the budget must be left."""
    needed = UNKNOWN_SHARE * budget if forecast is None else forecast
    return 0 < seconds_left >= needed
