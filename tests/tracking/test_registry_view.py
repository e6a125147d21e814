"""What the list of models shows of a version."""

from __future__ import annotations

import mlflow
import pytest

from fractal_model.tracking import registry
from fractal_model.tracking.registry_view import RegisteredVersion, registered_models
from fractal_model.tracking.tags import DECIDED_TAG
from tests.support.mlflow_server import SIZE


def _evaluated(version: str, protocol: str, fid: float) -> str:
    with mlflow.start_run() as run:
        mlflow.log_metric("fid", fid)
    registry.tag_version(SIZE, version, registry.evaluation_tag(protocol), run.info.run_id)
    return run.info.run_id


def test_the_numbers_are_of_the_decisions_protocol_and_of_no_deleted_run(new_version):
    version = new_version()
    decided, newer, newest = (_evaluated(version, p * 64, n) for n, p in enumerate("abc"))

    def shown() -> str | None:
        return registered_models()[0].versions[0].evaluation_run

    assert shown() == newest
    registry.tag_version(SIZE, version, DECIDED_TAG, "a" * 64)
    assert shown() == decided
    for run_id in (decided, newest):
        mlflow.MlflowClient().delete_run(run_id)
    assert shown() == newer
    mlflow.MlflowClient().delete_run(newer)
    assert shown() is None


@pytest.mark.parametrize(
    ("promoted", "decision", "says"),
    [
        (True, "better", "promoted: better"),
        (False, "worse", "not promoted: worse"),
        (None, "the first", "the first"),
        (None, None, "not evaluated"),
    ],
)
def test_the_outcome_says_what_the_store_says(promoted, decision, says):
    version = RegisteredVersion(
        version="1",
        aliases=(),
        registered_at=0.0,
        promoted=promoted,
        decision=decision,
        evaluation_run=None,
        metrics={},
    )
    assert version.outcome == says
