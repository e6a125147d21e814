"""Progress is shown in Prefect; a training continues if that fails."""

from __future__ import annotations

import logging

import pytest
from prefect.client.orchestration import get_client

from flows import training_progress
from fractal_model.common import progress
from fractal_model.training.job import Report, TrainingJob
from tests.support.failing_prefect import failing_prefect
from tests.support.recipes import make_job
from tests.support.reports import make_report

pytestmark = pytest.mark.usefixtures("prefect")


@pytest.fixture
def job(tmp_path, monkeypatch) -> TrainingJob:
    monkeypatch.setattr(training_progress, "ARTIFACT_SECONDS", 0.0)
    monkeypatch.setattr(training_progress, "AWAY_SECONDS", 0.0)
    # A flow run keeps one client; outside of a flow run each request has a new one.
    monkeypatch.setattr(training_progress, "get_run_logger", lambda: logging.getLogger("progress"))
    monkeypatch.setattr(training_progress.store, "run_page", lambda run: f"http://mlflow/{run}")
    return make_job(tmp_path, run_id="a")


def _report(position: int) -> Report:
    return make_report(position=position, epoch=position / 100)


def test_a_note_has_efficiency_and_comparison_if_they_are_known():
    report = make_report(images_per_second=100.0, epoch=2.0, loss=3.0)
    plain = "epoch 2.00, loss 3.000, 100 images/s, 0:00:05 left"
    assert training_progress._note(report, 500) == plain
    more = report.model_copy(update={"mfu": 0.412, "loss_over_reference": -0.0123})
    expected = "epoch 2.00, loss 3.000 (-0.012 to the reference curve), 100 images/s at 41% MFU, "
    assert training_progress._note(more, 500) == expected + "0:00:05 left"


def test_without_prefects_log_the_console_has_lines(job, monkeypatch, capsys, caplog):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(training_progress.TrainingProgress, "_try_to_publish", lambda *_: True)
    for level, lines in ((logging.INFO, 0), (logging.WARNING, 1)):
        caplog.set_level(level, logger="progress")
        with training_progress.TrainingProgress(job, images=100) as shown:
            shown.report(_report(50))
        found = [line for line in capsys.readouterr().out.splitlines() if "50 of 100" in line]
        assert len(found) >= lines and bool(found) == bool(lines)
        assert all(line.startswith("training tiny: 50 of 100") for line in found)
        assert all("epoch 0.50, loss" in line for line in found)


def test_training_goes_on_while_prefect_is_away(job, caplog):
    with failing_prefect() as requests, training_progress.TrainingProgress(job, 100) as shown:
        for position in (10, 20, 30):
            shown.report(_report(position))
    assert len(requests) >= 4
    warnings = [r for r in caplog.records if "progress can't be shown" in r.getMessage()]
    assert len(warnings) == 1


def test_progress_is_shown_once_prefect_is_back(job):
    with failing_prefect():
        shown = training_progress.TrainingProgress(job, images=100).__enter__()
        shown.report(_report(10))
    shown.report(_report(40))
    shown.report(_report(70))
    shown.__exit__()
    with get_client(sync_client=True) as client:
        artifacts = client.request("POST", "/artifacts/filter", json={}).json()
    assert [a["data"] for a in artifacts if a["key"] == "training-tiny"] == [70.0]
