"""The curves of a training run beside a reference curve, in MLflow."""

from __future__ import annotations

import mlflow
import pytest

from fractal_model.metrics.names import NLL
from fractal_model.reporting.reference_curve import CurvePoint, ReferenceCurve
from fractal_model.tracking.reports import _read_reference, log_training_curves

REFERENCE = ReferenceCurve(
    name="the champion",
    curves={"loss": tuple(CurvePoint(epoch=e, value=4.0 - e) for e in (1.0, 2.0))},
)

pytestmark = pytest.mark.usefixtures("local_store")


@pytest.fixture
def run_id() -> str:
    """A run of two epochs of 100 images, with the losses 3, 3, 2 and 2.2."""
    with mlflow.start_run() as run:
        for number, loss in enumerate((3.0, 3.0, 2.0, 2.2), 1):
            metrics = {"epoch": number / 2, "loss": loss}
            mlflow.log_metrics(metrics, step=50 * number)
        mlflow.log_metric(NLL, 0.8, step=200)
    return run.info.run_id


def files(run_id: str) -> set[str]:
    return {file.path for file in mlflow.MlflowClient().list_artifacts(run_id)}


def test_a_run_is_compared_and_its_reference_kept(run_id):
    with mlflow.start_run(run_id):
        lines = log_training_curves(run_id, REFERENCE)
    assert lines == ["loss 2.1000 at epoch 2: 0.1000 above the champion"]
    assert files(run_id) == {"curves.png", "reference.json"}
    assert _read_reference(run_id) == REFERENCE


def test_without_a_reference_the_curves_are_drawn_alone(run_id):
    with mlflow.start_run(run_id):
        assert log_training_curves(run_id, None) == []
    assert files(run_id) == {"curves.png"}
    assert _read_reference(run_id) is None


def test_a_run_without_curves_gets_no_figure():
    with mlflow.start_run() as run:
        assert log_training_curves(run.info.run_id, REFERENCE) == []
    assert files(run.info.run_id) == set()


@pytest.mark.parametrize("run_id", [None, "0" * 32])
def test_a_deleted_run_has_no_reference(run_id):
    assert _read_reference(run_id) is None
