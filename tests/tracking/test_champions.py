"""How the champion changes: by evaluations, by a person, by a rollback, and by many processes."""

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


def _compare(version: str, fid: float, fids: dict[str, float], **more: str) -> bool:
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
def test_the_stack_has_the_versions_that_a_rollback_can_return_to(steps, line):
    assert champion_stack(_changes(*steps)) == line


def test_the_change_by_which_a_person_replaced_a_champion_is_found():
    steps = [("1", "evaluation"), ("2", "evaluation"), ("1", "rollback"), ("3", "evaluation")]
    changes = _changes(*steps)
    assert find_withdrawal(changes, "2") == changes[2]
    assert find_withdrawal(changes, "1") is None
    assert find_withdrawal([*changes, *_changes(("2", "override"))], "2") is None


def test_a_better_version_is_promoted_and_a_worse_one_is_not(new_version):
    fids: dict[str, float] = {}
    first, second, third = new_version(), new_version(), new_version()
    assert _compare(first, 20.0, fids)
    assert not _compare(second, 21.0, fids)
    assert _compare(third, 19.0, fids)
    assert _champion() == third
    tags = registry.version_tags(SIZE, second)
    assert tags["fractal.decision.promoted"] == "false"
    assert tags["fractal.decision.champion"] == first
    assert (tags["fractal.decision.fid"], tags["fractal.decision.champion_fid"]) == ("21", "20")
    assert tags["fractal.decision"].startswith("FID 21.000 against 20.000")
    assert [c.version for c in champions.history(SIZE)] == [first, third]


def test_a_decision_deletes_the_details_of_an_earlier_one(new_version):
    first, second = new_version(), new_version()
    _compare(first, 20.0, fids := {})
    _compare(second, 21.0, fids)
    champions.promote_by_hand(SIZE, second, "it has no artefacts")
    tags = registry.version_tags(SIZE, second)
    assert "fractal.decision.fid" not in tags
    assert tags["fractal.decision"].endswith("it has no artefacts")
    assert tags["fractal.decision.promoted"] == "true"


def test_a_compared_version_and_the_champion_are_decided_also_after_a_rollback(new_version):
    first, second = new_version(), new_version()
    _compare(first, 20.0, fids := {})
    assert champions.is_decided(SIZE, first, "another")
    assert not champions.is_decided(SIZE, second, PROTOCOL)
    _compare(second, 19.0, fids)
    champions.rollback(SIZE, "dark")
    assert champions.is_decided(SIZE, second, PROTOCOL)
    assert not champions.is_decided(SIZE, second, "another")


def test_a_promotion_that_dies_before_the_alias_moves_is_decided_again(new_version, monkeypatch):
    version = new_version()
    with monkeypatch.context() as patch:
        patch.setattr(
            registry, "set_alias", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            _compare(version, 20.0, {})
    assert not champions.is_decided(SIZE, version, PROTOCOL)
    assert _compare(version, 20.0, {})


def test_an_objection_prevents_the_promotion_of_a_better_version(new_version):
    version = new_version()
    assert not _compare(version, 1.0, {}, objection="it serves otherwise")
    assert _champion() is None
    assert registry.version_tags(SIZE, version)["fractal.decision"].endswith("it serves otherwise")


def test_rollbacks_return_version_by_version_to_the_first(new_version):
    fids: dict[str, float] = {}
    for number, version in enumerate(versions := [new_version() for _ in range(3)]):
        _compare(version, 20.0 - number, fids)
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
    _compare(first, 20.0, fids)
    _compare(second, 19.0, fids)
    champions.rollback(SIZE, "it draws no sevens")
    assert not _compare(second, 19.0, fids)
    assert "it draws no sevens" in registry.version_tags(SIZE, second)["fractal.decision"]
    assert _compare(third, 18.0, fids)
    champions.promote_by_hand(SIZE, second, "sevens are fine")
    assert _champion() == second


def test_an_alias_that_something_else_moved_is_recorded_as_a_change(new_version):
    first, second, third = new_version(), new_version(), new_version()
    _compare(first, 20.0, fids := {})
    mlflow.MlflowClient().set_registered_model_alias(f"fractal-{SIZE}", "champion", second)
    fids[second] = 15.0
    assert _compare(third, 14.0, fids)
    changes = [(c.version, c.how) for c in champions.history(SIZE)]
    assert changes == [(first, "evaluation"), (second, "found"), (third, "evaluation")]
    assert champions.rollback(SIZE, "back") == (third, second)


def test_a_rollback_skips_a_deleted_version(new_version):
    fids: dict[str, float] = {}
    for number, version in enumerate(versions := [new_version() for _ in range(3)]):
        _compare(version, 20.0 - number, fids)
    mlflow.MlflowClient().delete_model_version(f"fractal-{SIZE}", versions[1])
    assert champions.rollback(SIZE, "dark") == (versions[2], versions[0])


def test_a_champion_that_changes_during_the_comparison_is_compared_too(new_version):
    """The slow evaluation of the old champion ends after a better one was promoted."""
    fids: dict[str, float] = {}
    first, slow, quick = new_version(), new_version(), new_version()
    _compare(first, 20.0, fids)
    compared = []

    def metrics_of(version: str) -> dict[str, float]:
        if not compared:
            _compare(quick, 18.0, fids)
        compared.append(version)
        return _metrics(fids[version])

    decision = champions.compare_and_promote(
        SIZE, slow, _metrics(19.0), RULES, protocol=PROTOCOL, metrics_of=metrics_of
    )
    assert compared == [first, quick]
    assert not decision.promote
    assert _champion() == quick
    assert registry.version_tags(SIZE, slow)["fractal.decision.champion"] == quick


def _registered() -> list[str]:
    return [model.name for model in mlflow.MlflowClient().search_registered_models()]


def test_a_promotion_leaves_no_entry_of_the_lock_behind(new_version):
    assert _compare(new_version(), 20.0, {})
    champions.promote_by_hand(SIZE, new_version(), "now")
    champions.rollback(SIZE, "back")
    assert _registered() == [f"fractal-{SIZE}"]


@pytest.mark.parametrize("name", [f"{promotion_lock.PREFIX}-dead", promotion_lock.PREFIX])
def test_the_entry_of_a_dead_process_or_an_earlier_version_is_deleted(
    new_version, monkeypatch, name
):
    monkeypatch.setattr(promotion_lock, "LONGEST_SECONDS", 1.0)
    mlflow.MlflowClient().create_registered_model(name)
    mlflow.MlflowClient().create_model_version(name, "test://none/none")
    started = time.monotonic()
    assert _compare(new_version(), 20.0, {})
    assert time.monotonic() - started >= 0.9, "a recent entry does not count as dead"
    assert _registered() == [f"fractal-{SIZE}"]


def test_a_process_that_stood_still_for_too_long_changes_nothing(new_version, monkeypatch):
    """Another process took it for dead and deleted its lock."""
    first, second = new_version(), new_version()
    _compare(first, 20.0, {})
    require = promotion_lock.PromotionLock.require

    def require_after_a_pause(lock):
        mlflow.MlflowClient().delete_registered_model(lock.entry)
        require(lock)

    monkeypatch.setattr(promotion_lock.PromotionLock, "require", require_after_a_pause)
    with pytest.raises(FractalError, match="another process removed its lock"):
        champions.promote_by_hand(SIZE, second, "now")
    with pytest.raises(FractalError, match="another process removed its lock"):
        _compare(second, 19.0, {first: 20.0})
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


def test_only_one_of_many_threads_holds_the_lock(new_version):
    holders, samples = [], []

    def work() -> None:
        for _ in range(3):
            with promotion_lock.hold_promotion_lock() as lock:
                holders.append(lock)
                lock.require()
                samples.append(list(holders))
                holders.remove(lock)

    with ThreadPoolExecutor(5) as pool:
        for future in [pool.submit(work) for _ in range(5)]:
            future.result()
    assert len(samples) == 15
    assert all(len(sample) == 1 for sample in samples)


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
def test_simultaneous_evaluations_leave_the_best_version_as_champion(
    tmp_path, request, where, rounds
):
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
