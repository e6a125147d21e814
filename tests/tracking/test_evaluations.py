"""The run that counts as the evaluation of a version."""

from __future__ import annotations

import mlflow
import pytest

from fractal_model.tracking import registry
from tests.support.mlflow_server import SIZE

PROTOCOL = "a" * 64


@pytest.fixture
def evaluate(new_version):
    """A function that makes a version and a run of its evaluation; it returns their ids."""

    def make(status: str = "FINISHED") -> tuple[str, str]:
        version = new_version()
        with mlflow.start_run() as run:
            pass
        mlflow.MlflowClient().set_terminated(run.info.run_id, status)
        tag = registry.evaluation_tag(PROTOCOL)
        registry.tag_version(SIZE, version, tag, run.info.run_id)
        return version, run.info.run_id

    return make


def test_a_finished_run_of_the_same_protocol_is_found(evaluate):
    version, run_id = evaluate()
    assert registry.find_evaluation(SIZE, version, PROTOCOL) == run_id
    assert registry.find_evaluation(SIZE, version, "b" * 64) is None


@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_an_unfinished_run_is_not_found(evaluate, status):
    version, _ = evaluate(status)
    assert registry.find_evaluation(SIZE, version, PROTOCOL) is None


def test_a_deleted_run_is_not_found(evaluate):
    version, run_id = evaluate()
    mlflow.delete_run(run_id)
    assert registry.find_evaluation(SIZE, version, PROTOCOL) is None


def test_a_run_that_the_store_does_not_know_is_not_found(evaluate):
    version, _ = evaluate()
    registry.tag_version(SIZE, version, registry.evaluation_tag(PROTOCOL), "0" * 32)
    assert registry.find_evaluation(SIZE, version, PROTOCOL) is None
