"""Faults on the driver's side: MLflow does not answer, the disk is full."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import mlflow
import pytest

from fractal_model.checkpoints.checkpoint import load_checkpoint, verify_checkpoint
from fractal_model.common.errors import FractalError
from fractal_model.training.ray_jobs.driver import drive
from tests.support.disturbed_runs import IMAGES
from tests.support.mlflow_server import Server

pytestmark = pytest.mark.faults


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()
    mlflow.set_tracking_uri(None)


def test_training_continues_while_mlflow_is_away(new_run, cluster, server):
    client = mlflow.MlflowClient(server.uri)
    run_id = client.create_run("0").info.run_id
    run = new_run(epochs=12)
    run.job = run.job.model_copy(update={"tracking_uri": server.uri, "run_id": run_id})
    killer = run.when(2 * IMAGES, server.kill)
    starter = run.when(6 * IMAGES, server.start)
    checkpoint = drive(run.job, on_report=run.reports.append, on_line=print)
    killer.join()
    starter.join()
    assert load_checkpoint(Path(checkpoint)).progress.position == 12 * IMAGES
    points = client.get_metric_history(run_id, "loss")
    expected = [(report.position, report.loss) for report in run.reports]
    assert sorted((p.step, p.value) for p in points) == sorted(expected)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_ends_the_training_and_harms_no_checkpoint(new_run, cluster, tmp_path):
    run = new_run("small", max_failures=0, keep_checkpoints=50, epochs=50)
    disk = Path(run.job.storage)
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], check=True)
    try:
        with pytest.raises(FractalError) as raised:
            run.train()
        assert "\n" not in str(raised.value)
        assert "space left" in str(raised.value)
        whole = [path.parent for path in run.folder.glob("checkpoint_*/COMPLETE")]
        assert len(whole) >= 2
        for folder in sorted(whole)[:-1]:
            verify_checkpoint(folder)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
