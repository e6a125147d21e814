"""How the champion changes: by evaluations, by a person, back, and by many at once."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import mlflow
import pytest

from fractal_model.common.errors import FractalError
from fractal_model.config.evaluation import PromotionConfig
from fractal_model.tracking import champions, promotion_lock, registry
from fractal_model.tracking.champions import Change, champion_stack, find_withdrawal
from tests.support import REPOSITORY
from tests.support.mlflow_server import SIZE

RULES = PromotionConfig()
PROTOCOL = "0" * 64
PROCESSES = 3


def _metrics(fid: float) -> dict[str, float]:
    return {"fid": fid, "nll_bits_per_dim": 0.7}


def _contest(version: str, fid: float, fids: dict[str, float], **more: str) -> bool:
    fids[version] = fid
    decision = champions.compare_and_promote(
        SIZE,
        version,
        _metrics(fid),
        RULES,
        protocol=PROTOCOL,
        metrics_of=lambda v: _metrics(fids[v]),
        **more,
    )
    return decision.promote


def _champion() -> str | None:
    return registry.aliased_version(SIZE, registry.CHAMPION)


def _changes(*steps: tuple[str, str]) -> list[Change]:
    return [Change(version=v, how=how, because="", who="", when="") for v, how in steps]


@pytest.mark.parametrize(
    ("steps", "line"),
    [
        ([], []),
        ([("1", "evaluation"), ("2", "evaluation"), ("3", "override")], ["1", "2", "3"]),
        ([("1", "evaluation"), ("2", "evaluation"), ("1", "rollback")], ["1"]),
        ([("1", "found"), ("2", "found"), ("3", "found"), ("2", "rollback")], ["1", "2"]),
        ([("1", "found"), ("2", "found"), ("1", "rollback"), ("3", "evaluation")], ["1", "3"]),
        ([("1", "found"), ("2", "found"), ("1", "override")], ["1", "2", "1"]),
    ],
)
def test_what_a_rollback_goes_back_through(steps, line):
    assert champion_stack(_changes(*steps)) == line


def test_what_a_person_took_the_title_from():
    steps = [("1", "evaluation"), ("2", "evaluation"), ("1", "rollback"), ("3", "evaluation")]
    changes = _changes(*steps)
    assert find_withdrawal(changes, "2") == changes[2]
    assert find_withdrawal(changes, "1") is None
    assert find_withdrawal([*changes, *_changes(("2", "override"))], "2") is None


def test_the_better_is_promoted_and_the_worse_is_not(new_version):
    fids: dict[str, float] = {}
    first, second, third = new_version(), new_version(), new_version()
    assert _contest(first, 20.0, fids)
    assert not _contest(second, 21.0, fids)
    assert _contest(third, 19.0, fids)
    assert _champion() == third
    tags = registry.version_tags(SIZE, second)
    assert tags["fractal.decision.promoted"] == "false"
    assert tags["fractal.decision.champion"] == first
    assert (tags["fractal.decision.fid"], tags["fractal.decision.champion_fid"]) == ("21", "20")
    assert tags["fractal.decision"].startswith("FID 21.000 against 20.000")
    assert [c.version for c in champions.history(SIZE)] == [first, third]


def test_the_details_of_an_earlier_decision_do_not_stay(new_version):
    first, second = new_version(), new_version()
    _contest(first, 20.0, fids := {})
    _contest(second, 21.0, fids)
    champions.promote_by_hand(SIZE, second, "it has no artefacts")
    tags = registry.version_tags(SIZE, second)
    assert "fractal.decision.fid" not in tags
    assert tags["fractal.decision"].endswith("it has no artefacts")
    assert tags["fractal.decision.promoted"] == "true"


def test_what_was_compared_or_is_the_champion_is_decided_also_after_a_person_spoke(new_version):
    first, second = new_version(), new_version()
    _contest(first, 20.0, fids := {})
    assert champions.is_decided(SIZE, first, "another")
    assert not champions.is_decided(SIZE, second, PROTOCOL)
    _contest(second, 19.0, fids)
    champions.rollback(SIZE, "dark")
    assert champions.is_decided(SIZE, second, PROTOCOL)
    assert not champions.is_decided(SIZE, second, "another")


def test_what_dies_before_its_version_is_crowned_is_not_decided(new_version, monkeypatch):
    version = new_version()
    with monkeypatch.context() as patch:
        patch.setattr(
            registry, "set_alias", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            _contest(version, 20.0, {})
    assert not champions.is_decided(SIZE, version, PROTOCOL)
    assert _contest(version, 20.0, {})


def test_an_objection_keeps_a_better_one_from_being_promoted(new_version):
    version = new_version()
    assert not _contest(version, 1.0, {}, objection="it serves otherwise")
    assert _champion() is None
    assert registry.version_tags(SIZE, version)["fractal.decision"].endswith("it serves otherwise")


def test_rolling_back_step_by_step_to_the_first(new_version):
    fids: dict[str, float] = {}
    for number, version in enumerate(versions := [new_version() for _ in range(3)]):
        _contest(version, 20.0 - number, fids)
    first, second, third = versions
    assert champions.rollback(SIZE, "dark") == (third, second)
    assert champions.rollback(SIZE, "dark too") == (second, first)
    assert _champion() == first
    with pytest.raises(FractalError, match=f"version {first} is the first"):
        champions.rollback(SIZE, "all dark")
    assert [c.how for c in champions.history(SIZE)] == ["evaluation"] * 3 + ["rollback"] * 2


def test_an_evaluation_does_not_undo_what_a_person_decided(new_version):
    fids: dict[str, float] = {}
    first, second, third = new_version(), new_version(), new_version()
    _contest(first, 20.0, fids)
    _contest(second, 19.0, fids)
    champions.rollback(SIZE, "it draws no sevens")
    assert not _contest(second, 19.0, fids)
    assert "it draws no sevens" in registry.version_tags(SIZE, second)["fractal.decision"]
    assert _contest(third, 18.0, fids)
    champions.promote_by_hand(SIZE, second, "sevens are fine")
    assert _champion() == second


def test_an_alias_that_was_moved_by_something_else_is_found(new_version):
    first, second, third = new_version(), new_version(), new_version()
    _contest(first, 20.0, fids := {})
    mlflow.MlflowClient().set_registered_model_alias(f"fractal-{SIZE}", "champion", second)
    fids[second] = 15.0
    assert _contest(third, 14.0, fids)
    found = [(c.version, c.how) for c in champions.history(SIZE)]
    assert found == [(first, "evaluation"), (second, "found"), (third, "evaluation")]
    assert champions.rollback(SIZE, "back") == (third, second)


def test_a_rollback_passes_over_a_version_that_was_deleted(new_version):
    fids: dict[str, float] = {}
    for number, version in enumerate(versions := [new_version() for _ in range(3)]):
        _contest(version, 20.0 - number, fids)
    mlflow.MlflowClient().delete_model_version(f"fractal-{SIZE}", versions[1])
    assert champions.rollback(SIZE, "dark") == (versions[2], versions[0])


def test_a_champion_that_changes_during_the_comparison_is_compared_with_too(new_version):
    """The slow evaluation of the old champion ends after a better one was promoted."""
    fids: dict[str, float] = {}
    first, slow, quick = new_version(), new_version(), new_version()
    _contest(first, 20.0, fids)
    asked = []

    def metrics_of(version: str) -> dict[str, float]:
        if not asked:
            _contest(quick, 18.0, fids)
        asked.append(version)
        return _metrics(fids[version])

    decision = champions.compare_and_promote(
        SIZE, slow, _metrics(19.0), RULES, protocol=PROTOCOL, metrics_of=metrics_of
    )
    assert asked == [first, quick]
    assert not decision.promote
    assert _champion() == quick
    assert registry.version_tags(SIZE, slow)["fractal.decision.champion"] == quick


def _registered() -> list[str]:
    return [model.name for model in mlflow.MlflowClient().search_registered_models()]


def test_a_promotion_leaves_no_entry_of_the_lock_behind(new_version):
    assert _contest(new_version(), 20.0, {})
    champions.promote_by_hand(SIZE, new_version(), "now")
    champions.rollback(SIZE, "back")
    assert _registered() == [f"fractal-{SIZE}"]


@pytest.mark.parametrize("name", [f"{promotion_lock.PREFIX}-dead", promotion_lock.PREFIX])
def test_what_a_dead_process_or_an_earlier_version_left_is_deleted(new_version, monkeypatch, name):
    monkeypatch.setattr(promotion_lock, "LONGEST_SECONDS", 1.0)
    mlflow.MlflowClient().create_registered_model(name)
    mlflow.MlflowClient().create_model_version(name, "test://none/none")
    began = time.monotonic()
    assert _contest(new_version(), 20.0, {})
    assert time.monotonic() - began >= 0.9, "who has just been heard of is not taken for dead"
    assert _registered() == [f"fractal-{SIZE}"]


def test_a_process_that_was_stopped_for_too_long_changes_nothing(new_version, monkeypatch):
    """Another process took it for dead while it stood still."""
    first, second = new_version(), new_version()
    _contest(first, 20.0, {})
    require = promotion_lock.PromotionLock.require

    def standing_still(lock):
        mlflow.MlflowClient().delete_registered_model(lock.entry)
        require(lock)

    monkeypatch.setattr(promotion_lock.PromotionLock, "require", standing_still)
    with pytest.raises(FractalError, match="others removed its lock"):
        champions.promote_by_hand(SIZE, second, "now")
    with pytest.raises(FractalError, match="others removed its lock"):
        _contest(second, 19.0, {first: 20.0})
    assert _champion() == first
    assert not any(
        tag.startswith("fractal.decision") for tag in registry.version_tags(SIZE, second)
    )


def test_waiting_ends_with_the_name_of_the_process_that_holds_the_lock(new_version):
    entry = f"{promotion_lock.PREFIX}-7"
    mlflow.MlflowClient().create_registered_model(entry, description="process 7 is at work")
    with (
        pytest.raises(FractalError, match="process 7 is at work"),
        promotion_lock.hold_promotion_lock(wait_seconds=0.3),
    ):
        pytest.fail("two processes hold the lock at once")
    assert entry in _registered()


def test_of_many_at_once_one_holds_the_lock(new_version):
    inside, turns = [], []

    def work() -> None:
        for _ in range(3):
            with promotion_lock.hold_promotion_lock() as lock:
                inside.append(lock)
                lock.require()
                turns.append(list(inside))
                inside.remove(lock)

    with ThreadPoolExecutor(5) as pool:
        for done in [pool.submit(work) for _ in range(5)]:
            done.result()
    assert len(turns) == 15
    assert all(len(holders) == 1 for holders in turns)


EVALUATION = """
import json, sys
import mlflow
from fractal_model.tracking import champions
from fractal_model.evaluation.promotion import PromotionConfig

uri, versions, fids = json.loads(sys.argv[1])
mlflow.set_tracking_uri(uri)
metrics = lambda version: {"fid": fids[version], "nll_bits_per_dim": 0.7}
for version in versions:
    champions.compare_and_promote(
        "race", version, metrics(version), PromotionConfig(), protocol="p", metrics_of=metrics
    )
"""


@pytest.mark.parametrize(
    ("where", "rounds"), [("file", 5), pytest.param("server", 3, marks=pytest.mark.slow)]
)
def test_evaluations_at_once_leave_the_best_as_champion(tmp_path, request, where, rounds):
    """Real processes, each with several versions; the best is promoted neither first nor last."""
    uri = f"sqlite:///{tmp_path}/m.db" if where == "file" else request.getfixturevalue("server")
    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient()
    client.create_registered_model("fractal-race")
    count = PROCESSES * rounds
    for _ in range(count):
        client.create_model_version("fractal-race", "test://none/none")
    fids = {str(n): float((7 * n) % (count + 1)) for n in range(1, count + 1)}
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    shares = [[str(n) for n in range(1 + p, count + 1, PROCESSES)] for p in range(PROCESSES)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", EVALUATION, json.dumps([uri, share, fids])],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for share in shares
    ]
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors

    changes = champions.history(SIZE)
    best = min(fids, key=fids.get)
    assert _champion() == changes[-1].version == best
    assert all(fids[b.version] < fids[a.version] for a, b in itertools.pairwise(changes))
    for before, change in itertools.pairwise(changes):
        tags = registry.version_tags(SIZE, change.version)
        assert tags["fractal.decision.champion"] == before.version
    for version in fids:
        promoted = version in {change.version for change in changes}
        tags = registry.version_tags(SIZE, version)
        assert tags["fractal.decision.promoted"] == str(promoted).lower()
    assert all(name.startswith("fractal-") for name in _registered())
