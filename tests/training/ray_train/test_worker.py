"""What a worker reports for validation, without Ray: one rank, whose context is replaced."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import ray.train
import ray.train.torch
from pyarrow.fs import LocalFileSystem
from ray.train.v2.api.validation_config import ValidationTaskConfig

from fractal_model.training.job import TrainingJob
from fractal_model.training.ray_train import validation_turn, worker
from fractal_model.training.ray_train.validation_points import ValidationPoints
from tests.support.disturbed_runs import IMAGES, VALIDATION, save_training_images
from tests.support.recipes import RECIPE, make_job

EPOCHS = 4


@pytest.fixture
def job(tmp_path) -> TrainingJob:
    changes = {
        "epochs": EPOCHS,
        "workers": 1,
        "min_workers": 1,
        "log_every_steps": 3,
        "validate_every_epochs": 2,
        "validation": VALIDATION.model_copy(update={"max_share": 1.0}),
    }
    data = save_training_images(tmp_path / "tiny")
    recipe = RECIPE.model_copy(update=changes)
    return make_job(tmp_path, recipe=recipe, data=data, images=IMAGES)


@pytest.fixture
def reported(job, monkeypatch) -> list[tuple[int, object]]:
    """The position and the order of validation of each report with a checkpoint."""
    orders: list[tuple[int, object]] = []
    storage = SimpleNamespace(
        storage_filesystem=LocalFileSystem(), experiment_fs_path=f"{job.storage}/{job.name}"
    )
    context = SimpleNamespace(
        get_world_rank=lambda: 0, get_world_size=lambda: 1, get_storage=lambda: storage
    )

    def report(metrics, checkpoint=None, checkpoint_upload_fn=None, validation=False, **_):
        if checkpoint is not None:
            orders.append((metrics["position"], validation))
            checkpoint_upload_fn.done.set()

    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: None)
    monkeypatch.setattr(ray.train, "report", report)
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: "cpu")
    for module in (worker, validation_turn):
        monkeypatch.setattr(module, "reported_checkpoints", lambda timeout=None: [])
    return orders


def test_the_task_is_to_measure_each_due_step_and_the_last(job, reported):
    worker.train_worker({"job": job.model_dump_json(), "validation": ""})
    assert reported == [(2 * IMAGES, True), (4 * IMAGES, True)]
    assert not (Path(job.storage) / job.name / "validation").exists()


def test_workers_measure_and_the_task_is_to_finish_their_points(job, reported, monkeypatch):
    monkeypatch.setattr(validation_turn.ValidationTurn, "_share_of_interval", lambda turn: 100.0)
    worker.train_worker({"job": job.model_dump_json(), "validation": worker.BY_WORKERS})
    expected = [
        (position, ValidationTaskConfig(fn_kwargs={"position": position}, timeout_s=120))
        for position in (2 * IMAGES, 4 * IMAGES)
    ]
    assert reported == expected
    points = ValidationPoints.of_run(job.storage, job.name)
    for position, _ in expected:
        assert set(points.read_measured(position).metrics) == {
            "nll_bits_per_dim",
            "nll_bits_per_dim_stderr",
        }
        assert points.read(position) is None
