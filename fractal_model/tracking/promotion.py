"""Whether a candidate becomes the champion: a pure rule over two sets of metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

NLL, NLL_ERROR, FID = "nll_bits_per_dim", "nll_bits_per_dim_stderr", "fid"


@dataclass(frozen=True)
class Decision:
    """What was decided, and why in one line with its numbers."""

    promote: bool
    reason: str


def decide(candidate: Mapping[str, float], champion: Mapping[str, float] | None) -> Decision:
    """Promote when there is no champion, or when FID is lower and the likelihood is not worse by
    more than its standard error. Both sets are of one protocol; `champion` may lack metrics."""
    if champion is None:
        return Decision(True, "there is no champion yet")
    missing = [key for key in (NLL, FID) if key not in candidate or key not in champion]
    if missing:
        return Decision(False, f"not comparable, without {', '.join(missing)} of both")
    numbers = (
        f"FID {candidate[FID]:.3f} against {champion[FID]:.3f}, "
        f"{candidate[NLL]:.4f} against {champion[NLL]:.4f} bits/dim"
    )
    allowed = candidate.get(NLL_ERROR, 0.0)
    better = candidate[FID] < champion[FID] and candidate[NLL] <= champion[NLL] + allowed
    return Decision(better, numbers)
