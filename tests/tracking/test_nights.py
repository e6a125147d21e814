"""Durations of earlier evaluations for the forecast of a night."""

from __future__ import annotations

import mlflow

from fractal_model.tracking import nights
from fractal_model.tracking.tags import KIND_TAG, PROTOCOL_TAG, SIZE_TAG, VERSION_TAG


def _log_evaluation(version: str, protocol: str, *, seconds: int, status: str = "FINISHED") -> None:
    tags = {KIND_TAG: "evaluate", SIZE_TAG: "race"}
    tags |= {VERSION_TAG: version, PROTOCOL_TAG: protocol}
    client = mlflow.MlflowClient()
    run_id = client.create_run("0", start_time=1000, tags=tags).info.run_id
    client.log_param(run_id, nights.SAMPLES_PARAM, 300)
    client.set_terminated(run_id, status, end_time=1000 * (1 + seconds))


def test_an_evaluation_that_reused_a_stopped_runs_images_is_left_out(local_store):
    _log_evaluation("1", "a", seconds=50)
    _log_evaluation("2", "a", seconds=900, status="FAILED")
    _log_evaluation("2", "a", seconds=3)
    _log_evaluation("2", "b", seconds=60)
    evaluations = nights.earlier_evaluations("0", "race")
    assert sorted(evaluation.seconds for evaluation in evaluations) == [50, 60]
    assert {evaluation.samples for evaluation in evaluations} == {300}
    assert nights.earlier_evaluations("0", "another") == []
