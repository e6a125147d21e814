"""What a night remembers of earlier evaluations."""

from __future__ import annotations

import mlflow

from fractal_model.tracking import nights
from fractal_model.tracking.tags import KIND_TAG, PROTOCOL_TAG, SIZE_TAG, VERSION_TAG


def _evaluated(version: str, protocol: str, *, seconds: int, status: str = "FINISHED") -> None:
    tags = {KIND_TAG: "evaluate", SIZE_TAG: "race"}
    tags |= {VERSION_TAG: version, PROTOCOL_TAG: protocol}
    client = mlflow.MlflowClient()
    run_id = client.create_run("0", start_time=1000, tags=tags).info.run_id
    client.log_param(run_id, nights.SAMPLES_PARAM, 300)
    client.set_terminated(run_id, status, end_time=1000 * (1 + seconds))


def test_what_went_on_with_a_stopped_run_is_left_out(local_store):
    _evaluated("1", "a", seconds=50)
    _evaluated("2", "a", seconds=900, status="FAILED")
    _evaluated("2", "a", seconds=3)
    _evaluated("2", "b", seconds=60)
    found = nights.earlier_evaluations("0", "race")
    assert sorted(each.seconds for each in found) == [50, 60]
    assert {each.samples for each in found} == {300}
    assert nights.earlier_evaluations("0", "another") == []
