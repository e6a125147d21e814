"""The driver compares reports and validation points with the reference, and logs them."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import mlflow
import pytest

from fractal_model.metrics.names import NLL
from fractal_model.reporting.reference_curve import CurvePoint, ReferenceCurve
from fractal_model.tracking import store
from fractal_model.training.job import ValidationPoint
from fractal_model.training.ray_jobs import driver
from tests.support.recipes import make_job
from tests.support.reports import make_report

POINT = ValidationPoint(position=160, step=20, epoch=2.0, metrics={NLL: 0.9})


def points(*values: float) -> tuple[CurvePoint, ...]:
    return tuple(
        CurvePoint(epoch=epoch, value=value, spread=0.01) for epoch, value in enumerate(values, 1)
    )


REFERENCE = ReferenceCurve(
    name="the reference curve", curves={"loss": points(3.0, 2.5), NLL: points(0.9, 0.8)}
)


@pytest.fixture
def drive(tmp_path, monkeypatch):
    """A function that drives a training of two reports and one point; it returns what the driver
    handed on, and the metrics in MLflow."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    address = store.connect(tmp_path / "outputs")
    with mlflow.start_run() as run:
        pass
    job = make_job(tmp_path, tracking_uri=address, run_id=run.info.run_id, reference=REFERENCE)

    def train(job, *, on_report, on_point):
        on_report(make_report(position=80, epoch=1.0, loss=3.2, mfu=0.4))
        on_report(make_report(position=160, epoch=2.0, loss=2.51, note="look"))
        on_point(POINT, {})
        return "checkpoint"

    @contextmanager
    def watch_machines(on_metrics):
        on_metrics({"system/a/cpu_utilization_percentage": 50.0})
        on_metrics({})
        yield

    monkeypatch.setattr(driver, "run_training", train)
    monkeypatch.setattr(driver, "watch_machines", watch_machines)
    monkeypatch.setattr(driver, "ray_cluster", lambda cpus: nullcontext())

    def run_driver():
        reports, lines = [], []
        assert driver.drive(job, on_report=reports.append, on_line=lines.append) == "checkpoint"
        return reports, lines, mlflow.get_run(job.run_id).data.metrics

    return run_driver


def test_reports_and_points_are_compared(drive, caplog):
    reports, lines, metrics = drive()
    assert [round(report.loss_over_reference, 4) for report in reports] == [0.2, 0.01]
    assert [report.note for report in reports] == [None, None]
    assert lines == [
        "tiny, epoch 2.00: 0.9000 bits/dim held out; 0.1000 above the reference curve, not normal "
        "(±0.0500)"
    ]
    assert metrics["loss_over_reference"] == pytest.approx(0.01)
    assert metrics["mfu"] == 0.4 and metrics[NLL] == 0.9
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("frac")]
    assert messages == [
        "tiny, epoch 1.00: the mean loss of the last epoch is 0.2000 above the reference curve, "
        "not normal (±0.0500)",
        "tiny, epoch 2.00: look",
    ]


def test_only_on_a_cluster_the_driver_logs_system_metrics(drive, monkeypatch):
    assert not [name for name in drive()[2] if name.startswith("system/")]
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert drive()[2]["system/a/cpu_utilization_percentage"] == 50.0
