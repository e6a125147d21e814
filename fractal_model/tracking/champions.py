"""Who is the champion, who was, and how that changes.

Decided here: the alias `champion` is moved by these functions alone, one process at a time
(`promotion_lock.py`); every change is kept, as a tag of the registered model that is never written
again, so that a rollback finds what was before; and what a person has taken the title from gets it
back from a person alone, not from the next evaluation.
"""

from __future__ import annotations

import getpass
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import mlflow

from fractal_model.common.errors import FractalError
from fractal_model.common.strict import StrictModel
from fractal_model.config.evaluation import PromotionConfig
from fractal_model.evaluation.promotion import Decision, decide
from fractal_model.tracking import registry
from fractal_model.tracking.promotion_lock import PromotionLock, hold_promotion_lock
from fractal_model.tracking.store import utc_now
from fractal_model.tracking.tags import CHANGE_TAG, DECIDED_TAG, DECISION_TAG


class Change(StrictModel):
    """A version became the champion."""

    version: str
    how: Literal["evaluation", "override", "rollback", "found"]
    """`found`: the alias was moved by something else, such as MLflow's own page."""
    because: str
    who: str
    when: str
    """UTC, ISO 8601."""


def history(size: str) -> list[Change]:
    """All changes of a size's champion, in their order."""
    tags = mlflow.MlflowClient().get_registered_model(registry.model_name(size)).tags
    keys = sorted(key for key in tags if key.startswith(CHANGE_TAG))
    return [Change.model_validate_json(tags[key]) for key in keys]


def champion_stack(changes: Sequence[Change]) -> list[str]:
    """The versions that a rollback goes back through, the champion last: each change puts one on
    top, a rollback takes off what lies above its version."""
    stack: list[str] = []
    for change in changes:
        if change.how == "rollback" and change.version in stack:
            while stack[-1] != change.version:
                stack.pop()
        elif stack[-1:] != [change.version]:
            stack.append(change.version)
    return stack


def find_withdrawal(changes: Sequence[Change], version: str) -> Change | None:
    """The change by which a person put another in the place of `version`, where that was the last
    word about it."""
    last, champion = None, None
    for change in changes:
        if change.version == version:
            last = None
        elif champion == version and change.how != "evaluation":
            last = change
        champion = change.version
    return last


def compare_and_promote(
    size: str,
    version: str,
    metrics: Mapping[str, float],
    rules: PromotionConfig,
    *,
    protocol: str,
    metrics_of: Callable[[str], Mapping[str, float]],
    objection: str = "",
) -> Decision:
    """Compare a version with the champion, and promote it where it is better.

    `metrics` are of the protocol with the checksum `protocol`, which is written down too.
    `metrics_of` gives another version's metrics under the same protocol; it may take long and is
    called while others may change the champion: then the new one is compared with too. An
    `objection` keeps the version from being promoted, whatever its numbers are.
    """
    while True:
        champion = registry.aliased_version(size, registry.CHAMPION)
        if champion == version:
            return Decision(False, "the candidate is the champion")
        decision = decide(metrics, None if champion is None else metrics_of(champion), rules)
        if decision.promote and objection:
            decision = _but(decision, objection)
        settled = _settle(size, version, decision, protocol, against=champion)
        if settled is not None:
            return settled


def is_decided(size: str, version: str, protocol: str) -> bool:
    """Whether a version was compared under this protocol, or needs no comparison: it is the
    champion."""
    was_compared = registry.version_tags(size, version).get(DECIDED_TAG) == protocol
    return was_compared or registry.aliased_version(size, registry.CHAMPION) == version


def _settle(
    size: str, version: str, decision: Decision, protocol: str, *, against: str | None
) -> Decision | None:
    """Write down a decision made against the champion `against`, and promote where it says so;
    returns the decision that stands. None where the champion is another by now."""
    with _hold_title(size) as title:
        if title.champion != against:
            return None
        taken = find_withdrawal(title.changes, version)
        if decision.promote and taken is not None:
            decision = _but(
                decision,
                f"{taken.who} put version {taken.version} in its place on {taken.when} "
                f"({taken.because}): `fractal models promote {size} {version}` takes that back",
            )
        title.write_down(version, decision, against)
        if decision.promote:
            title.give(_change(version, "evaluation", decision.reason))
        # Last: where this process dies before it, the next night decides again.
        registry.tag_version(size, version, DECIDED_TAG, protocol)
    return decision


def _but(decision: Decision, objection: str) -> Decision:
    return Decision(False, f"{decision.reason}; but {objection}", decision.numbers)


def promote_by_hand(size: str, version: str, because: str) -> str | None:
    """Make a version the champion whatever its numbers are; returns the one that it replaces.
    FractalError: unknown size or version, or it is the champion."""
    registry.require_version(size, version)
    with _hold_title(size) as title:
        if title.champion == version:
            raise FractalError(
                f"version {version} of {registry.model_name(size)} is the champion already: "
                f"nothing to do"
            )
        change = _change(version, "override", because)
        decision = Decision(True, f"promoted by {change.who}: {because}")
        title.write_down(version, decision, title.champion)
        title.give(change)
    return title.champion


def rollback(size: str, because: str) -> tuple[str, str]:
    """Give the title back to the champion before; returns both versions, the old one first.
    FractalError: unknown size, or there was none before."""
    there = {str(version.version) for version in registry.versions(size)}
    with _hold_title(size) as title:
        line = champion_stack(title.changes)
        before = [version for version in line[:-1] if version in there and version != line[-1]]
        if not before:
            now = f"version {line[-1]} is the first" if line else "there is none"
            raise FractalError(
                f"{registry.model_name(size)} has no champion to go back to, {now}: choose a "
                f"version with `fractal models promote {size} VERSION`"
            )
        change = _change(before[-1], "rollback", because)
        if line[-1] in there:
            decision = Decision(False, f"taken back by {change.who}: {because}")
            title.write_down(line[-1], decision, before[-1])
        title.give(change)
    return line[-1], before[-1]


@contextmanager
def _hold_title(size: str) -> Iterator[_Title]:
    """The title of champion, which no other process gives away within the block. If the alias was
    moved by something else, that is a change too."""
    with hold_promotion_lock() as lock:
        champion = registry.aliased_version(size, registry.CHAMPION)
        title = _Title(size, lock, champion, history(size))
        if champion is not None and (not title.changes or title.changes[-1].version != champion):
            title.record(_change(champion, "found", "the alias pointed to it"))
        yield title


@dataclass(frozen=True)
class _Title:
    """Who is the champion of a size, while this process may change it."""

    size: str
    lock: PromotionLock
    champion: str | None
    changes: list[Change]

    def give(self, change: Change) -> None:
        """Make a version the champion. The record first: whoever sees the new one finds why."""
        self.lock.require()
        self.record(change)
        registry.set_alias(self.size, registry.CHAMPION, change.version)

    def record(self, change: Change) -> None:
        self.changes.append(change)
        name, key = registry.model_name(self.size), f"{CHANGE_TAG}{len(self.changes):04d}"
        mlflow.MlflowClient().set_registered_model_tag(name, key, change.model_dump_json())

    def write_down(self, version: str, decision: Decision, against: str | None) -> None:
        """A decision as tags of its version, in the place of those of an earlier one; the protocol
        of the last comparison stays, so that a night does not take up again what a person
        decided."""
        self.lock.require()
        details = {
            "promoted": str(decision.promote).lower(),
            "champion": against or "none",
            "when": utc_now(),
            **{name: f"{value:.6g}" for name, value in decision.numbers.items()},
        }
        wanted = {f"{DECISION_TAG}.{name}": value for name, value in details.items()}
        client, name = mlflow.MlflowClient(), registry.model_name(self.size)
        for key in registry.version_tags(self.size, version):
            if key.startswith(f"{DECISION_TAG}.") and key not in (*wanted, DECIDED_TAG):
                client.delete_model_version_tag(name, version, key)
        for key, value in {**wanted, DECISION_TAG: decision.reason}.items():
            registry.tag_version(self.size, version, key, value)


def _change(version: str, how: str, because: str) -> Change:
    try:
        who = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        who = "somebody without a name"
    return Change(version=version, how=how, because=because, who=who, when=utc_now())
