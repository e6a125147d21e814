"""32 workers on four simulated machines run the same flow and code as on 32 GPUs, with another
resource name. During training a machine is lost and a worker is killed.

    make test-scale
"""

from __future__ import annotations

import signal
import threading
import time
from functools import partial
from pathlib import Path

import mlflow
import psutil
import pytest

from flows import train
from fractal_model.checkpoints.checkpoint import load_checkpoint
from fractal_model.cli import app
from fractal_model.tracking import registry, store
from fractal_model.training.ray_jobs import driver
from fractal_model.training.ray_train.run import run_training
from tests.support.disturbed_runs import training_workers
from tests.support.images_seen import recording_worker, steps_seen
from tests.support.params import small_params
from tests.support.projects import make_project
from tests.support.simulated_cluster import ACCELERATOR, machines

pytestmark = [pytest.mark.scale, pytest.mark.timeout(1800)]
EPOCHS, IMAGES, BATCH = 16, 1757, 320
MAX_BYTES, MAX_WORKER_BYTES, MAX_MINUTES = 21e9, 0.65e9, 15


def scale_params() -> dict:
    content = small_params()
    content["training"]["digits"].update(
        epochs=EPOCHS,
        batch_size=BATCH,
        workers=32,
        min_workers=20,
        resources_per_worker={"CPU": 1, ACCELERATOR: 1},
        images_per_worker=4,
        log_every_steps=1,
        checkpoint_every_epochs=1,
        max_failures=5,
        stall_seconds=300,
    )
    return content


class Watcher(threading.Thread):
    """Loses a machine after the first checkpoint, then kills a worker; measures the peak memory."""

    def __init__(self, runs: Path, lose_machine) -> None:
        super().__init__(daemon=True)
        self._runs = runs
        self._lose_machine = lose_machine
        self.peak = self.worker_peak = 0
        self.ended = threading.Event()
        self.done: list[str] = []

    def run(self) -> None:
        while not self.ended.wait(1.0):
            total, largest = _measure_memory()
            self.peak = max(self.peak, total)
            self.worker_peak = max(self.worker_peak, largest)
            checkpoints = len(list(self._runs.glob("*/checkpoint_*/COMPLETE")))
            if checkpoints >= 1 and not self.done:
                self._lose_machine()
                self.done.append("machine lost")
                lost_at = time.monotonic()
            elif self.done == ["machine lost"] and time.monotonic() > lost_at + 30:
                training = training_workers()
                if len(training) == 24:
                    training[5].send_signal(signal.SIGKILL)
                    self.done.append("worker killed")


def _measure_memory() -> tuple[int, int]:
    """Return the proportional set size, in bytes, of this process with all its descendants, and of
    the largest worker."""
    total = largest = 0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        try:
            size = process.memory_full_info().pss
            is_worker = "RayTrainWorker" in " ".join(process.cmdline())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        total += size
        largest = max(largest, size if is_worker else 0)
    return total, largest


def test_32_workers_finish_although_a_machine_and_a_worker_are_lost(tmp_path, prefect, monkeypatch):
    seen = tmp_path / "seen"
    seen.mkdir()
    recording = partial(run_training, worker=recording_worker(seen))
    monkeypatch.setattr(driver, "run_training", recording)
    project = make_project(tmp_path / "a project", scale_params())
    project.run(app.main, "data", "prepare", "digits")
    with machines(3, workers=8, on_head=8) as (cluster, nodes):
        watcher = Watcher(
            project.outputs / "training/digits", lambda: cluster.remove_node(nodes[1])
        )
        watcher.start()
        started = time.monotonic()
        project.run(train.main)
        minutes = (time.monotonic() - started) / 60
        watcher.ended.set()
        watcher.join()
    assert watcher.done == ["machine lost", "worker killed"]
    print(
        f"{minutes:.1f} minutes, {watcher.peak / 1e9:.1f} GB at the peak, "
        f"{watcher.worker_peak / 1e9:.2f} GB the largest worker"
    )

    store.connect(project.outputs)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs(
        [client.get_experiment_by_name("fractal-digits").experiment_id],
        "tags.`fractal.kind` = 'train'",
    )
    worker_counts = {int(m.value) for m in client.get_metric_history(run.info.run_id, "workers")}
    assert worker_counts == {32, 24}
    position = load_checkpoint(registry.resolve("digits").checkpoint).progress.position
    assert EPOCHS * IMAGES <= position < EPOCHS * IMAGES + BATCH
    steps = steps_seen(seen, epochs=EPOCHS, images=IMAGES, batch=BATCH)
    assert (steps[0], steps[-1], set(steps)) == (32, 24, {32, 24})
    assert watcher.peak < MAX_BYTES
    assert watcher.worker_peak < MAX_WORKER_BYTES
    assert minutes < MAX_MINUTES
