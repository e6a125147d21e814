"""Current and former champions of a size, and the functions that change the champion.

Decided here: only these functions move the alias `champion`, one process at a time
(`promotion_lock.py`). Every change is kept as a tag of the registered model, so that a rollback can
find the earlier champions. If a person has replaced a champion, only a person can make the replaced
version the champion again; an evaluation cannot.
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
    """One change of the champion: `version` became the champion."""

    version: str
    how: Literal["evaluation", "override", "rollback", "found"]
    """What caused the change: an evaluation, a person's choice (override) or a rollback. `found`
    means that the alias was moved without this module, such as by a person on MLflow's page."""
    because: str
    who: str
    """Login name of the user who ran the process that recorded the change."""
    when: str
    """Time of the change, UTC, ISO 8601."""


def history(size: str) -> list[Change]:
    """All changes of a size's champion, the oldest first."""
    tags = mlflow.MlflowClient().get_registered_model(registry.model_name(size)).tags
    keys = sorted(key for key in tags if key.startswith(CHANGE_TAG))
    return [Change.model_validate_json(tags[key]) for key in keys]


def champion_stack(changes: Sequence[Change]) -> list[str]:
    """Return the earlier champions that a rollback can choose, oldest first; the current champion
    is last. A change appends its version. A rollback removes versions after the restored one."""
    stack: list[str] = []
    for change in changes:
        if change.how == "rollback" and change.version in stack:
            while stack[-1] != change.version:
                stack.pop()
        elif stack[-1:] != [change.version]:
            stack.append(change.version)
    return stack


def find_withdrawal(changes: Sequence[Change], version: str) -> Change | None:
    """Return the change by which a person replaced `version` as champion. None: no person replaced
    it, or it became the champion again later."""
    withdrawal, champion = None, None
    for change in changes:
        if change.version == version:
            withdrawal = None
        elif champion == version and change.how != "evaluation":
            withdrawal = change
        champion = change.version
    return withdrawal


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
    """Compare a version with the champion and promote it if it is better.

    Return the decision, which is stored unless the version is the champion already. `metrics`: the
    version's metrics under the protocol whose fingerprint is `protocol`. `metrics_of` returns
    another version's metrics under this protocol, and may take hours to evaluate that version. If
    the champion changes meanwhile, the version is compared with the new champion too. `objection`:
    a reason not to promote the version, or "".
    """
    while True:
        champion = registry.aliased_version(size, registry.CHAMPION)
        if champion == version:
            return Decision(False, "the candidate is the champion")
        decision = decide(metrics, None if champion is None else metrics_of(champion), rules)
        if decision.promote and objection:
            decision = _refuse(decision, objection)
        final = _store_decision(size, version, decision, protocol, against=champion)
        if final is not None:
            return final


def is_decided(size: str, version: str, protocol: str) -> bool:
    """True if a version is the champion, or was last compared with a champion under this protocol.
    `protocol`: the protocol's fingerprint."""
    was_compared = registry.version_tags(size, version).get(DECIDED_TAG) == protocol
    return was_compared or registry.aliased_version(size, registry.CHAMPION) == version


def _store_decision(
    size: str, version: str, decision: Decision, protocol: str, *, against: str | None
) -> Decision | None:
    """Store a decision about `version` after a comparison with the champion `against` (None: there
    was no champion), and promote the version if the decision says so. Return the final decision, or
    None if the champion has changed since the comparison."""
    with _lock_champion(size) as locked:
        if locked.champion != against:
            return None
        withdrawal = find_withdrawal(locked.changes, version)
        if decision.promote and withdrawal is not None:
            decision = _refuse(
                decision,
                f"{withdrawal.who} replaced version {version} by {withdrawal.version} on "
                f"{withdrawal.when} ({withdrawal.because}): to promote it again, run `fractal "
                f"models promote {size} {version}`",
            )
        locked.store_decision(version, decision, against)
        if decision.promote:
            locked.set_champion(_change(version, "evaluation", decision.reason))
        # This tag comes last: if the process dies before it, the next night decides again.
        registry.tag_version(size, version, DECIDED_TAG, protocol)
    return decision


def _refuse(decision: Decision, objection: str) -> Decision:
    return Decision(False, f"{decision.reason}; but {objection}", decision.numbers)


def promote_by_hand(size: str, version: str, because: str) -> str | None:
    """Make a version the champion without comparing metrics; return the former champion, if any.
    FractalError: the size or version is unknown, or the version is the champion already."""
    registry.require_version(size, version)
    with _lock_champion(size) as locked:
        if locked.champion == version:
            raise FractalError(
                f"version {version} of {registry.model_name(size)} is the champion already: "
                f"nothing to do"
            )
        change = _change(version, "override", because)
        decision = Decision(True, f"promoted by {change.who}: {because}")
        locked.store_decision(version, decision, locked.champion)
        locked.set_champion(change)
    return locked.champion


def rollback(size: str, because: str) -> tuple[str, str]:
    """Make the previous champion the champion again; return the replaced version and the new
    champion. FractalError: the size is unknown, or no previous champion exists any more."""
    existing = {str(version.version) for version in registry.versions(size)}
    with _lock_champion(size) as locked:
        stack = champion_stack(locked.changes)
        earlier = [version for version in stack[:-1] if version in existing - {stack[-1]}]
        if not earlier:
            state = f"version {stack[-1]} is the first" if stack else "it never had a champion"
            raise FractalError(
                f"{registry.model_name(size)} has no earlier champion, {state}: choose a version "
                f"with `fractal models promote {size} VERSION`"
            )
        change = _change(earlier[-1], "rollback", because)
        if stack[-1] in existing:
            decision = Decision(False, f"rolled back by {change.who}: {because}")
            locked.store_decision(stack[-1], decision, earlier[-1])
        locked.set_champion(change)
    return stack[-1], earlier[-1]


@contextmanager
def _lock_champion(size: str) -> Iterator[_LockedChampion]:
    """Lock and yield the champion of a size, so that no other process changes it in the `with`
    block. If the alias was moved without this module, first record that as a change."""
    with hold_promotion_lock() as lock:
        champion = registry.aliased_version(size, registry.CHAMPION)
        locked = _LockedChampion(size, lock, champion, history(size))
        if champion is not None and (not locked.changes or locked.changes[-1].version != champion):
            locked.record(_change(champion, "found", "the alias pointed to it"))
        yield locked


@dataclass(frozen=True)
class _LockedChampion:
    """The champion of a size and all its changes, while this process holds the promotion lock."""

    size: str
    lock: PromotionLock
    champion: str | None
    changes: list[Change]

    def set_champion(self, change: Change) -> None:
        """Make a version the champion. The change is recorded first, so that whoever sees the new
        champion also finds the reason."""
        self.lock.require()
        self.record(change)
        registry.set_alias(self.size, registry.CHAMPION, change.version)

    def record(self, change: Change) -> None:
        self.changes.append(change)
        name, key = registry.model_name(self.size), f"{CHANGE_TAG}{len(self.changes):04d}"
        mlflow.MlflowClient().set_registered_model_tag(name, key, change.model_dump_json())

    def store_decision(self, version: str, decision: Decision, against: str | None) -> None:
        """Store a decision about `version` in its tags and delete the old decision. `against`: the
        champion, if any. The tag DECIDED_TAG stays: without it, the next nightly evaluation would
        compare the version again and might undo the decision of a person."""
        self.lock.require()
        details = {
            "promoted": str(decision.promote).lower(),
            "champion": against or "none",
            "when": utc_now(),
            **{name: f"{value:.6g}" for name, value in decision.numbers.items()},
        }
        new_tags = {f"{DECISION_TAG}.{name}": value for name, value in details.items()}
        client, name = mlflow.MlflowClient(), registry.model_name(self.size)
        for key in registry.version_tags(self.size, version):
            if key.startswith(f"{DECISION_TAG}.") and key not in (*new_tags, DECIDED_TAG):
                client.delete_model_version_tag(name, version, key)
        for key, value in {**new_tags, DECISION_TAG: decision.reason}.items():
            registry.tag_version(self.size, version, key, value)


def _change(version: str, how: str, because: str) -> Change:
    try:
        who = getpass.getuser()
    except (KeyError, OSError):  # A container's user may have no name.
        who = "a user without a name"
    return Change(version=version, how=how, because=because, who=who, when=utc_now())
