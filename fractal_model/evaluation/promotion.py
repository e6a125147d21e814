"""The rule that makes a candidate the champion: a pure function of two sets of metrics."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from fractal_model.config.evaluation import PromotionConfig
from fractal_model.metrics.names import FID, NLL, error_name


@dataclass(frozen=True)
class Decision:
    """The outcome of a comparison of candidate and champion."""

    promote: bool
    reason: str
    """Reason of the outcome on one line, with the numbers that decided."""
    numbers: dict[str, float] = field(default_factory=dict)
    """FID and bits per dimension of the candidate. With a champion also its metrics, as
    `champion_…`, and two limits: the FID must be lower by more than `fid_must_gain`, and the bits
    per dimension may be higher by at most `nll_may_lose`. Empty if a metric is missing."""


def decide(
    candidate: Mapping[str, float], champion: Mapping[str, float] | None, rules: PromotionConfig
) -> Decision:
    """Decide to promote a candidate if it has a lower FID and no more bits per dimension than the
    champion.

    `rules` say, in standard errors, by how much the FID must be lower and by how much the bits may
    be higher. Without a champion, the candidate only needs to have both metrics. The caller passes
    metrics of one protocol. A metric that is missing or not finite prevents promotion, so a preview
    is never promoted: it has no metric named `fid`. A missing standard error counts as 0.
    """
    missing = [key for key in (NLL, FID) if not _is_finite(candidate, key)]
    if missing:
        return Decision(False, f"not evaluated in full, without {' and '.join(missing)}")
    if champion is None:
        return Decision(
            True, "there is no champion yet", {key: candidate[key] for key in (FID, NLL)}
        )
    missing = [key for key in (NLL, FID) if not _is_finite(champion, key)]
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
    words = {True: "yes", False: "no"}
    reason = (
        f"FID {candidate[FID]:.3f} against {champion[FID]:.3f} (lower by more than "
        f"{must_gain:.3f}: {words[better]}), {candidate[NLL]:.4f} against {champion[NLL]:.4f} "
        f"bits/dim (worse by at most {may_lose:.4f}: {words[no_worse]})"
    )
    return Decision(better and no_worse, reason, numbers)


def as_markdown(size: str, version: str, decision: Decision) -> str:
    """Return the decision on a `version` of `size` as Markdown: outcome, reason and a table."""
    outcome = "promoted to champion" if decision.promote else "not promoted"
    rows = [f"| {name} | {value:.4f} |" for name, value in decision.numbers.items()]
    table = "\n".join(["| number | value |", "|---|---:|", *rows]) if rows else ""
    return f"**fractal-{size} version {version}: {outcome}**\n\n{decision.reason}\n\n{table}"


def _is_finite(metrics: Mapping[str, float], key: str) -> bool:
    return math.isfinite(metrics.get(key, math.nan))


def _error(metrics: Mapping[str, float], metric: str) -> float:
    key = error_name(metric)
    return metrics[key] if _is_finite(metrics, key) else 0.0
