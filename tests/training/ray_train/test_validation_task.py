"""The Ray task of a validation: its resources, and what it does with a checkpoint."""

import json
from pathlib import Path

import pytest
import ray
from ray.train import Checkpoint

from fractal_model.checkpoints.checkpoint import Progress, save_checkpoint
from fractal_model.config.params import load_params
from fractal_model.config.training import TrainingConfig
from fractal_model.data.prepared import open_prepared
from fractal_model.metrics.reference import build_reference
from fractal_model.training.job import PreviewInputs, TrainingJob
from fractal_model.training.ray_train import fid_preview, run, validation_task
from fractal_model.training.ray_train.best import keep_best
from fractal_model.training.ray_train.fid_preview import preview_of
from fractal_model.training.ray_train.validation_points import ValidationPoints
from tests.support import tiny_model
from tests.support.disturbed_runs import IMAGES, VALIDATION, save_training_images
from tests.support.params import SHIPPED
from tests.support.pixel_features import Pixels, use_pixels_as_features
from tests.support.recipes import RECIPE, make_job

NLL = "nll_bits_per_dim"
GPUS = {"CPU": 1.0, "GPU": 1.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return save_training_images(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture
def job(data, tmp_path, monkeypatch) -> TrainingJob:
    monkeypatch.setattr(validation_task.os, "nice", lambda increment: 0)
    monkeypatch.setattr(validation_task.ray, "get_gpu_ids", lambda: [])
    monkeypatch.setattr(validation_task.torch, "set_num_threads", lambda threads: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    recipe = RECIPE.model_copy(update={"validate_every_epochs": 1, "validation": VALIDATION})
    return make_job(tmp_path, recipe=recipe, data=data, images=IMAGES)


@pytest.fixture
def points(job) -> ValidationPoints:
    return ValidationPoints.of_run(job.storage, job.name)


def save(job: TrainingJob, position: int) -> Checkpoint:
    folder = Path(job.storage) / job.name / f"checkpoint_{position}"
    progress = Progress(size="tiny", fingerprint="f", position=position, steps=position // 8)
    save_checkpoint(folder, model=tiny_model("mar"), optimizer={}, progress=progress)
    return Checkpoint.from_directory(folder)


def validate(job: TrainingJob, checkpoint: Checkpoint, **settings: object) -> None:
    validation_task.validate_checkpoint(checkpoint, job=job.model_dump_json(), **settings)


def recipe_of(workers: int, resources: dict[str, float]) -> TrainingConfig:
    return RECIPE.model_copy(update={"workers": workers, "resources_per_worker": resources})


@pytest.mark.parametrize(
    ("workers", "resources", "cluster", "gpus", "by_workers"),
    [
        (2, {"CPU": 1.0}, {"CPU": 4.0}, 0, False),
        (2, {"CPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}, 0, False),
        (2, GPUS, {"CPU": 4.0, "GPU": 2.0}, 0, True),
        (2, GPUS, {"CPU": 4.0, "GPU": 3.0}, 1, False),
        (2, {"GPU": 0.5}, {"CPU": 4.0, "GPU": 2.0}, 1, False),
        (2, {"GPU": 0.5}, {"CPU": 4.0, "GPU": 1.5}, 0, True),
    ],
)
def test_validation_takes_a_gpu_that_no_worker_uses(
    monkeypatch, job, workers, resources, cluster, gpus, by_workers
):
    monkeypatch.setattr(ray, "cluster_resources", lambda: cluster)
    recipe = recipe_of(workers, resources)
    assert validation_task.measured_by_workers(recipe) is by_workers
    recipe = recipe.model_copy(update={"validate_every_epochs": 1})
    job = job.model_copy(update={"recipe": recipe})
    task = validation_task.validation_of(job, by_workers=by_workers).ray_remote_kwargs
    assert (task["num_cpus"], task["num_gpus"]) == (0, gpus)


def test_a_checkpoint_is_measured_once_and_kept_as_the_best(job, points):
    checkpoint = save(job, 64)
    validate(job, checkpoint)
    point = points.read(64)
    assert (point.step, point.epoch, point.failure) == (8, 1.0, None)
    assert points.read_grid(64, "samples.png").startswith(b"\x89PNG")
    record = json.loads((Path(job.storage) / job.name / "best.json").read_text())
    assert record == {"checkpoint": "checkpoint_64", NLL: point.metrics[NLL]}
    validate(job, checkpoint)
    assert points.read(64) == point
    assert points.attempts(64) == 1


def test_the_task_has_the_threads_of_one_worker(job, monkeypatch):
    threads: list[int] = []
    monkeypatch.setattr(validation_task.torch, "set_num_threads", threads.append)
    recipe = job.recipe.model_copy(update={"resources_per_worker": {"CPU": 2.5}})
    validate(job.model_copy(update={"recipe": recipe}), save(job, 64))
    assert threads == [2]


def test_a_point_that_the_workers_have_measured_is_completed(job, points):
    measured = job.place(64, 8).model_copy(update={"metrics": {NLL: 0.25}, "seconds": 3.0})
    points.start(64)
    points.store_measured(measured, {})
    validate(job, save(job, 64), position=64)
    assert points.read(64) == measured
    assert json.loads((Path(job.storage) / job.name / "best.json").read_text())[NLL] == 0.25
    validate(job, save(job, 128), position=128)  # The workers' files are lost.
    assert points.positions() == [64]


def test_after_two_unfinished_points_the_run_says_once_that_it_is_not_validated(job, points):
    points.start(64)
    points.start(128)
    validate(job, save(job, 192))
    assert "timeout_seconds (120)" in points.read(192).failure
    assert "start the run again" in points.read(192).failure
    validate(job, save(job, 256))
    assert points.positions() == [64, 128, 192]


def test_a_failure_gives_a_point_with_the_reason(job, points, tmp_path):
    validate(job.model_copy(update={"data": tmp_path / "nowhere"}), save(job, 64))
    point = points.read(64)
    assert point.metrics == {} and "nowhere" in point.failure


@pytest.mark.parametrize("has_best", [True, False])
def test_without_a_best_checkpoint_the_last_one_is_registered(job, caplog, has_best):
    run_folder = f"{job.storage}/{job.name}"
    best = job.model_copy(
        update={"recipe": job.recipe.model_copy(update={"register_checkpoint": "best"})}
    )
    if has_best:
        filesystem, path = validation_task.FileSystem.from_uri(run_folder)
        keep_best(filesystem, path, save(job, 64), 0.5)
        assert run._chosen_checkpoint(best, "checkpoint_128") == f"{run_folder}/best/checkpoint_64"
        assert run._chosen_checkpoint(job, "checkpoint_128") == f"{run_folder}/checkpoint_128"
    else:
        assert run._chosen_checkpoint(best, "checkpoint_128") == f"{run_folder}/checkpoint_128"
        assert "no checkpoint could be validated" in caplog.text


@pytest.fixture
def previewed(job, tmp_path, monkeypatch) -> TrainingJob:
    """A job with a preview of 20 samples at every second validation."""
    use_pixels_as_features(monkeypatch)
    monkeypatch.setattr(fid_preview, "inception_checksum", lambda weights: Pixels.weights_checksum)
    file = tmp_path / "reference.npz"
    build_reference(open_prepared(job.data, "train"), Pixels(), file, images=IMAGES, sample=IMAGES)
    evaluation = load_params(SHIPPED).size("digits").evaluation
    inputs = PreviewInputs(
        evaluation=evaluation.model_copy(update={"preview_per_class": 5}),
        reference=file,
        inception_weights="auto",
    )
    validation = VALIDATION.model_copy(update={"preview_every": 2})
    recipe = job.recipe.model_copy(update={"validation": validation, "epochs": 5})
    return job.model_copy(update={"recipe": recipe, "preview": inputs})


def test_a_preview_fid_comes_with_every_second_validation_and_the_last(previewed, points):
    for epoch in (1, 2):
        validate(previewed, save(previewed, IMAGES * epoch))
    assert set(points.read(IMAGES).metrics) == {NLL, f"{NLL}_stderr"}
    assert points.read(2 * IMAGES).failure is None
    assert points.read(2 * IMAGES).metrics["fid_20"] > 0
    steps = previewed.recipe.steps(1, IMAGES)
    has_preview = [preview_of(previewed, previewed.place(IMAGES * e, e * steps)) for e in (3, 4, 5)]
    assert [preview is not None for preview in has_preview] == [False, True, True]


def test_a_preview_that_fails_costs_no_likelihood(previewed, points):
    previewed.preview.reference.unlink()
    validate(previewed, save(previewed, 2 * IMAGES))
    point = points.read(2 * IMAGES)
    assert set(point.metrics) == {NLL, f"{NLL}_stderr"}
    assert "reference" in point.failure


def test_without_previews_in_the_recipe_there_are_none(job):
    assert preview_of(job, job.place(IMAGES, 8)) is None
