"""Adapter of validation to Ray Train: measures a checkpoint in a Ray task while training continues.

Decided here: the task has the lowest priority in the machine's scheduler, and takes a GPU only if
the workers leave one free. Ray runs one validation at a time, with a timeout, and keeps its
checkpoint until it ends. If measuring fails, the point has the reason, and training continues.
"""

import os
import time
from typing import Any

import pyarrow
import ray
import ray.train
from pyarrow.fs import FileSystem

# `ray.train` has these names at run time, but its type annotations do not.
from ray.train.v2.api.validation_config import ValidationConfig as RayValidationConfig
from ray.train.v2.api.validation_config import ValidationTaskConfig

from fractal_model.checkpoints.checkpoint import Checkpoint, load_checkpoint
from fractal_model.checkpoints.storage import fetch_checkpoint
from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.logs import keep_secrets_out_of_logs
from fractal_model.common.memory import compute_device
from fractal_model.config.training import TrainingConfig
from fractal_model.config.weights import MODEL
from fractal_model.data.prepared import open_prepared
from fractal_model.evaluation.model_quality import draw_grid, measure_held_out
from fractal_model.generation.pictures import png_bytes
from fractal_model.metrics.names import NLL, error_name
from fractal_model.training.job import TrainingJob, ValidationPoint
from fractal_model.training.ray_train.best import keep_best
from fractal_model.training.ray_train.validation_points import MOST_UNFINISHED, ValidationPoints

LOWEST_PRIORITY = 19
"""Nice value of the validation process: the largest, so that training gets the CPUs first."""


def validation_of(job: TrainingJob) -> RayValidationConfig | None:
    """Ray's settings for validating a job's checkpoints; None if the recipe does not validate."""
    if not job.recipe.validate_every_epochs:
        return None
    return RayValidationConfig(
        fn=validate_checkpoint,
        task_config=ValidationTaskConfig(
            fn_kwargs={"job": job.model_dump_json()},
            timeout_s=job.recipe.validation.timeout_seconds,
        ),
        # Ray restarts a task whose process was killed, until the timeout.
        ray_remote_kwargs={"max_retries": -1, **_resources(job.recipe)},
    )


def _resources(recipe: TrainingConfig) -> dict[str, float]:
    """Resources that Ray reserves for a validation: no CPU, and one GPU if the workers leave one
    free."""
    spare = ray.cluster_resources().get(
        "GPU", 0
    ) - recipe.workers * recipe.resources_per_worker.get("GPU", 0)
    return {"num_cpus": 0, "num_gpus": 1 if recipe.uses_gpu and spare >= 1 else 0}


def validate_checkpoint(checkpoint: ray.train.Checkpoint, **settings: Any) -> dict[str, Any]:
    """Measure a checkpoint, store its validation point, and copy the checkpoint if it is the best
    so far. `settings` has only `job`, the TrainingJob as JSON. Ray expects a dict of metrics; it
    gets an empty one."""
    keep_secrets_out_of_logs()
    if not ray.get_gpu_ids():  # Ray leaves all GPUs visible, and each belongs to a worker.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.nice(LOWEST_PRIORITY - os.nice(0))
    training = TrainingJob.model_validate_json(settings["job"])
    filesystem, run = FileSystem.from_uri(f"{training.storage}/{training.name}")
    points = ValidationPoints(filesystem, run)
    with fetch_checkpoint(checkpoint.path, checkpoint.filesystem) as folder:
        loaded = load_checkpoint(folder)
    position = loaded.progress.position
    if points.read(position) is not None:  # The step was repeated after its measurement.
        return {}
    if len(set(points.unfinished()) - {position}) >= MOST_UNFINISHED:
        return {}
    points.start(position)
    point, grids = _measure(training, loaded)
    bits = point.metrics.get(training.score)
    if bits is not None:
        try:
            keep_best(filesystem, run, checkpoint, bits)
        except (OSError, pyarrow.ArrowException) as error:  # Training does not depend on it.
            failure = f"the best checkpoint was not copied: {one_line(error)}"
            point = point.model_copy(update={"failure": failure})
    points.finish(point, grids)
    return {}


def _measure(job: TrainingJob, checkpoint: Checkpoint) -> tuple[ValidationPoint, dict[str, bytes]]:
    """Return the validation point and the sample grids of a checkpoint. If measuring fails, the
    point has the reason and what was measured before."""
    began, progress = time.monotonic(), checkpoint.progress
    metrics: dict[str, float] = {}
    grids: dict[str, bytes] = {}
    failure = None
    try:
        for weights in (MODEL, *checkpoint.averages):
            _measure_weights(job, checkpoint, weights, metrics, grids)
    except Exception as error:  # A failed measurement must not end the training.
        failure = one_line(error)
    point = ValidationPoint(
        position=progress.position,
        step=progress.steps,
        epoch=progress.position / job.images,
        metrics=metrics,
        grids=tuple(grids),
        failure=failure,
        seconds=time.monotonic() - began,
    )
    return point, grids


def _measure_weights(
    job: TrainingJob,
    checkpoint: Checkpoint,
    weights: str,
    metrics: dict[str, float],
    grids: dict[str, bytes],
) -> None:
    """Add the metrics and the sample grid of the weights that `weights` names. FractalError: the
    likelihood is not finite, or the data set cannot be opened."""
    held_out, settings = open_prepared(job.data, "validation"), job.recipe.validation
    model = checkpoint.build_model(weights).to(compute_device())
    likelihood = measure_held_out(model, held_out, settings)
    if not likelihood.per_image.isfinite().all():
        raise FractalError("the held-out likelihood is not finite: lower base_learning_rate")
    suffix = job.suffix(weights)
    name = f"{NLL}{suffix}"
    metrics[name] = likelihood.mean
    if len(likelihood.per_image) > 1:
        metrics[error_name(name)] = likelihood.standard_error
    grids[f"samples{suffix}.png"] = png_bytes(draw_grid(model, job.sampling, settings))
