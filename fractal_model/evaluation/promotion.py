"""Whether a candidate becomes the champion: a pure rule over two sets of metrics."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from fractal_model.config.evaluation import PromotionConfig
from fractal_model.metrics.names import FID, NLL, error_name


@dataclass(frozen=True)
class Decision:
    """What was decided, and why in one line with its numbers."""

    promote: bool
    reason: str
    numbers: dict[str, float] = field(default_factory=dict)
    """What was compared: metrics of the candidate, `champion_…` of the champion, and the
    differences that the rules ask for and allow, `fid_must_gain` and `nll_may_lose`."""


def decide(
    candidate: Mapping[str, float], champion: Mapping[str, float] | None, rules: PromotionConfig
) -> Decision:
    """Promote when FID is lower and the likelihood is not worse, both beyond what `rules` take for
    chance; a candidate without a champion needs the two numbers alone.

    Both sets are of one protocol. A number that is missing or not finite promotes nothing: a
    preview's FID has another name, so it is missing. An error that is missing counts as 0.
    """
    missing = [key for key in (NLL, FID) if not _finite(candidate, key)]
    if missing:
        return Decision(False, f"not evaluated in full, without {' and '.join(missing)}")
    if champion is None:
        return Decision(
            True, "there is no champion yet", {key: candidate[key] for key in (FID, NLL)}
        )
    missing = [key for key in (NLL, FID) if not _finite(champion, key)]
    if missing:
        return Decision(False, f"not comparable, the champion has no {' and no '.join(missing)}")
    must_gain = rules.fid_standard_errors * math.hypot(
        _error(candidate, FID), _error(champion, FID)
    )
    may_lose = rules.nll_standard_errors * _error(candidate, NLL)
    better = champion[FID] - candidate[FID] > must_gain
    no_worse = candidate[NLL] - champion[NLL] <= may_lose
    numbers = {
        FID: candidate[FID],
        f"champion_{FID}": champion[FID],
        "fid_must_gain": must_gain,
        NLL: candidate[NLL],
        f"champion_{NLL}": champion[NLL],
        "nll_may_lose": may_lose,
    }
    answer = {True: "yes", False: "no"}
    reason = (
        f"FID {candidate[FID]:.3f} against {champion[FID]:.3f} (lower by more than "
        f"{must_gain:.3f}: {answer[better]}), {candidate[NLL]:.4f} against {champion[NLL]:.4f} "
        f"bits/dim (worse by at most {may_lose:.4f}: {answer[no_worse]})"
    )
    return Decision(better and no_worse, reason, numbers)


def as_markdown(size: str, version: str, decision: Decision) -> str:
    """A decision with a table of its numbers."""
    outcome = "promoted to champion" if decision.promote else "not promoted"
    rows = [f"| {name} | {value:.4f} |" for name, value in decision.numbers.items()]
    table = "\n".join(["| number | value |", "|---|---:|", *rows]) if rows else ""
    return f"**fractal-{size} version {version}: {outcome}**\n\n{decision.reason}\n\n{table}"


def _finite(metrics: Mapping[str, float], key: str) -> bool:
    return math.isfinite(metrics.get(key, math.nan))


def _error(metrics: Mapping[str, float], metric: str) -> float:
    key = error_name(metric)
    return metrics[key] if _finite(metrics, key) else 0.0
