"""Adapter of validation to Ray Train: finishes the point of a checkpoint in a Ray task while
training continues. The task measures the checkpoint, unless the workers have measured it already.

Decided here: the task has the lowest priority in the machine's scheduler, and as many threads as a
worker. It measures on a GPU that the workers leave free, or on the CPU if the workers use no GPU.
If the workers use all GPUs, they measure themselves (see `validation_turn.py`), because a second
process on a worker's GPU could take the memory that training needs, and published sizes are too
slow on a CPU. Ray runs one task at a time, with a timeout, and keeps its checkpoint until it ends.
If measuring fails, the point has the reason, and training continues.
"""

import os
from functools import partial
from typing import Any

import pyarrow
import ray
import ray.train
import torch
from pyarrow.fs import FileSystem

# `ray.train` has these names at run time, but its type annotations do not.
from ray.train.v2.api.validation_config import ValidationConfig as RayValidationConfig
from ray.train.v2.api.validation_config import ValidationTaskConfig

from fractal_model.checkpoints.checkpoint import load_checkpoint
from fractal_model.checkpoints.storage import fetch_checkpoint
from fractal_model.common.errors import one_line
from fractal_model.common.logs import keep_secrets_out_of_logs
from fractal_model.common.memory import return_freed_memory
from fractal_model.config.training import TrainingConfig
from fractal_model.config.weights import MODEL
from fractal_model.training.job import TrainingJob, ValidationPoint
from fractal_model.training.ray_train.best import keep_best
from fractal_model.training.ray_train.fid_preview import preview_of
from fractal_model.training.ray_train.measurement import measure
from fractal_model.training.ray_train.validation_points import MOST_UNFINISHED, ValidationPoints

LOWEST_PRIORITY = 19
"""Nice value of the validation process: the largest, so that training gets the CPUs first."""


def validation_of(job: TrainingJob, *, by_workers: bool) -> RayValidationConfig | None:
    """Ray's settings for validating a job's checkpoints; None if the recipe does not validate.
    `by_workers`: the workers measure, and the task only finishes their points."""
    if not job.recipe.validate_every_epochs:
        return None
    return RayValidationConfig(
        fn=validate_checkpoint,
        task_config=ValidationTaskConfig(
            fn_kwargs={"job": job.model_dump_json()},
            timeout_s=job.recipe.validation.timeout_seconds,
        ),
        # Ray restarts a task whose process was killed, until the timeout.
        # It needs no CPU of its own, and a GPU only if the workers leave one free.
        ray_remote_kwargs={
            "max_retries": -1,
            "num_cpus": 0,
            "num_gpus": int(job.recipe.uses_gpu and not by_workers),
        },
    )


def measured_by_workers(recipe: TrainingConfig) -> bool:
    """True if the workers measure: they use GPUs, and the connected cluster has no other one."""
    used = recipe.workers * recipe.resources_per_worker.get("GPU", 0)
    return recipe.uses_gpu and ray.cluster_resources().get("GPU", 0) - used < 1


def validate_checkpoint(checkpoint: ray.train.Checkpoint, **settings: Any) -> dict[str, Any]:
    """Measure a checkpoint, store its validation point, and copy the checkpoint if it is the best
    so far. `settings` has `job`, the TrainingJob as JSON. If the workers have measured the
    checkpoint, it also has `position`, the number of images seen. Ray expects a dict of metrics; it
    gets an empty one."""
    keep_secrets_out_of_logs()
    if not ray.get_gpu_ids():  # Ray leaves all GPUs visible, and each belongs to a worker.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.nice(LOWEST_PRIORITY - os.nice(0))
    job = TrainingJob.model_validate_json(settings["job"])
    if not job.recipe.uses_gpu:  # More threads would wait for each other while workers compute.
        torch.set_num_threads(job.recipe.threads_per_worker)
    points = ValidationPoints.of_run(job.storage, job.name)
    if "position" in settings:
        point = points.read_measured(settings["position"])
        if point is not None:
            _finish(job, points, checkpoint, point, {})
    else:
        _measure(job, points, checkpoint)
        _free_memory()
    return {}


def _free_memory() -> None:
    """Return the memory of a measurement, because Ray may keep this process for the next one."""
    return_freed_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _measure(job: TrainingJob, points: ValidationPoints, checkpoint: ray.train.Checkpoint) -> None:
    if points.is_given_up():
        return
    with fetch_checkpoint(checkpoint.path, checkpoint.filesystem) as folder:
        loaded = load_checkpoint(folder)
    progress = loaded.progress
    # A point that exists was measured before its step was repeated.
    if points.read(progress.position) is not None:
        return
    place = job.place(progress.position, progress.steps)
    if len(set(points.unfinished()) - {progress.position}) >= MOST_UNFINISHED:
        points.give_up(
            place,
            f"the last {MOST_UNFINISHED} validations did not end within timeout_seconds "
            f"({job.recipe.validation.timeout_seconds:g}), so there are no more in this run: lower "
            f"validation.images or passes or raise timeout_seconds, and start the run again",
        )
        return
    points.start(progress.position)
    models = {
        weights: partial(loaded.build_model, weights) for weights in (MODEL, *loaded.averages)
    }
    point, grids = measure(job, models, place, preview=preview_of(job, place))
    _finish(job, points, checkpoint, point, grids)


def _finish(
    job: TrainingJob,
    points: ValidationPoints,
    checkpoint: ray.train.Checkpoint,
    point: ValidationPoint,
    grids: dict[str, bytes],
) -> None:
    """Copy the checkpoint if it is the best so far, and complete its point."""
    bits = point.metrics.get(job.score)
    if bits is not None:
        filesystem, run = FileSystem.from_uri(f"{job.storage}/{job.name}")
        try:
            keep_best(filesystem, run, checkpoint, bits)
        except (OSError, pyarrow.ArrowException) as error:  # Training does not depend on it.
            failure = f"the best checkpoint was not copied: {one_line(error)}"
            failures = "; ".join(filter(None, (point.failure, failure)))
            point = point.model_copy(update={"failure": failures})
    points.finish(point, grids)
