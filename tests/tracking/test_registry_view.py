"""The registry's content as the list of models shows it."""

from __future__ import annotations

import mlflow
import pytest

from fractal_model.tracking import registry
from fractal_model.tracking.registry_view import (
    RegisteredVersion,
    registered_models,
    served_models,
)
from fractal_model.tracking.tags import DECIDED_TAG
from tests.support.mlflow_server import SIZE


def _log_evaluation(version: str, protocol: str, fid: float) -> str:
    with mlflow.start_run() as run:
        mlflow.log_metric("fid", fid)
    registry.tag_version(SIZE, version, registry.evaluation_tag(protocol), run.info.run_id)
    return run.info.run_id


def test_the_numbers_belong_to_the_decisions_protocol_and_to_no_deleted_run(new_version):
    version = new_version()
    decided, newer, newest = (_log_evaluation(version, p * 64, n) for n, p in enumerate("abc"))

    def shown_run() -> str | None:
        return registered_models()[0].versions[0].evaluation_run

    assert shown_run() == newest
    registry.tag_version(SIZE, version, DECIDED_TAG, "a" * 64)
    assert shown_run() == decided
    for run_id in (decided, newest):
        mlflow.MlflowClient().delete_run(run_id)
    assert shown_run() == newer
    mlflow.MlflowClient().delete_run(newer)
    assert shown_run() is None


@pytest.mark.parametrize(
    ("promoted", "decision", "outcome"),
    [
        (True, "better", "promoted: better"),
        (False, "worse", "not promoted: worse"),
        (None, "the first", "the first"),
        (None, None, "not evaluated"),
    ],
)
def test_the_outcome_has_the_decision_and_its_reason(promoted, decision, outcome):
    version = RegisteredVersion(
        version="1",
        aliases=(),
        registered_at=0.0,
        promoted=promoted,
        decision=decision,
        evaluation_run=None,
        metrics={},
    )
    assert version.outcome == outcome


def test_the_champion_is_served_first_and_a_candidate_of_its_own_after_it(new_version):
    assert served_models() == []
    name, client = registry.model_name(SIZE), mlflow.MlflowClient()
    old, new = new_version(), new_version()
    client.set_registered_model_alias(name, registry.CANDIDATE, old)
    assert served_models() == [f"models:/{name}@candidate"]
    client.set_registered_model_alias(name, registry.CHAMPION, old)
    assert served_models() == [f"models:/{name}@champion"]
    client.set_registered_model_alias(name, registry.CANDIDATE, new)
    assert served_models() == [f"models:/{name}@champion", f"models:/{name}@candidate"]
    client.delete_registered_model_alias(name, registry.CANDIDATE)
    client.delete_registered_model_alias(name, registry.CHAMPION)
    assert served_models() == []
