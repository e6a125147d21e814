"""Adapter of Ray Train: launches the workers of a run and waits for them.

A run that is started again continues from its last checkpoint. If a worker dies or hangs, Ray
restarts the workers from that checkpoint. Their number may change within the recipe's range.
"""

import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath

import ray
import ray.train
from pyarrow.fs import FileSystem
from ray.train.torch import TorchConfig

# `ray.train` has these names at run time, but its type annotations do not.
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.torch.torch_trainer import TorchTrainer

from fractal_model.common.errors import FractalError
from fractal_model.config.training import TrainingConfig
from fractal_model.training.job import Report, Stopped, TrainingJob
from fractal_model.training.ray_train.best import best_checkpoint
from fractal_model.training.ray_train.failed_start import FreeFailedStart
from fractal_model.training.ray_train.failures import train_through_failures
from fractal_model.training.ray_train.relay import Relay
from fractal_model.training.ray_train.validation_points import (
    OnPoint,
    ValidationPoints,
    follow_points,
)
from fractal_model.training.ray_train.validation_task import measured_by_workers, validation_of
from fractal_model.training.ray_train.worker import BY_WORKERS, train_worker

PLACEMENT_SECONDS = 30
"""Seconds that Ray waits for all workers to get a machine, before it plans again. A plan may
contain a machine that was just lost; the next plan does not."""
POLL_SECONDS = 0.25
"""Seconds between Ray's requests for reports. A worker waits until Ray has taken its last report,
so Ray's default of two seconds would slow down a training with short steps."""
logger = logging.getLogger("fractal.training")


def run_training(
    job: TrainingJob,
    *,
    on_report: Callable[[Report], None],
    on_point: OnPoint = lambda point, grids: None,
    worker: Callable[[dict[str, str]], None] = train_worker,
) -> str:
    """Train on the connected cluster to the end of the recipe; return the folder or address of the
    checkpoint to register.

    `on_point` receives each validation point of the run with its sample grids, also the points from
    before a restart. Each worker calls `worker` with the job, as `train_worker` expects it.
    FractalError: a worker failed too often, a worker ended the run, or no worker could be started.
    """
    recipe = job.recipe
    stop_reasons: list[str] = []

    def handle_report(report: Report | Stopped) -> None:
        if isinstance(report, Stopped):
            stop_reasons.append(report.stopped)
        else:
            on_report(report)

    def train(workers: int) -> ray.train.Result:
        with _keep_interrupt_handler():
            return _make_trainer(job, worker, workers, relay).fit()

    _require_resources(recipe)
    _set_deadlines(recipe)
    points = ValidationPoints.of_run(job.storage, job.name)
    with suppress(OSError):  # The workers will say so if the storage fails.
        points.forget_unfinished()
    with (
        Relay(job.local / "reports" / job.run_id, handle_report) as relay,
        follow_points(points, on_point),
    ):
        result = train_through_failures(train, recipe)
    if stop_reasons:
        raise FractalError(f"training ended: {stop_reasons[0]}")
    assert result.checkpoint is not None  # The last step of a training saves one.
    return _chosen_checkpoint(job, PurePosixPath(result.checkpoint.path).name)


def _make_trainer(
    job: TrainingJob, worker: Callable[[dict[str, str]], None], workers: int, relay: Relay
) -> TorchTrainer:
    """Return Ray's trainer of a job, with at most `workers` workers that call `worker`."""
    recipe, by_workers = job.recipe, measured_by_workers(job.recipe)
    return TorchTrainer(
        worker,
        train_loop_config={
            "job": job.model_dump_json(),
            "validation": BY_WORKERS if by_workers else "",
        },
        scaling_config=_scaling(recipe, workers),
        torch_config=TorchConfig(
            backend="nccl" if recipe.uses_gpu else "gloo",
            timeout_s=math.ceil(recipe.stall_seconds),
        ),
        run_config=RunConfig(
            name=job.name,
            storage_path=job.storage,
            failure_config=FailureConfig(max_failures=recipe.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=recipe.keep_checkpoints),
            # Ray also accepts its internal kind of callback, without saying so in its types.
            callbacks=[relay.callback, FreeFailedStart(recipe.max_failures)],  # type: ignore[list-item]
        ),
        validation_config=validation_of(job, by_workers=by_workers),
    )


def _chosen_checkpoint(job: TrainingJob, last: str) -> str:
    """Return the folder or address of the checkpoint to register: the best or the last one, as the
    recipe says. If no checkpoint was validated, it is the last one. `last`: name of the last
    one."""
    run = f"{job.storage}/{job.name}"
    if job.recipe.register_checkpoint == "last":
        return f"{run}/{last}"
    best, _ = best_checkpoint(*FileSystem.from_uri(run))
    if best is None:
        logger.warning("%s: no checkpoint could be validated, so the last one is used", job.size)
        return f"{run}/{last}"
    return f"{run}/{best}"


def _scaling(recipe: TrainingConfig, workers: int) -> ScalingConfig:
    """Ray's settings: `min_workers` to `workers` workers, and the resources of each."""
    is_fixed = recipe.min_workers == workers
    return ScalingConfig(
        num_workers=workers if is_fixed else (recipe.min_workers, workers),
        use_gpu=recipe.uses_gpu,
        resources_per_worker=dict(recipe.resources_per_worker),
        accelerator_type=recipe.accelerator_type,
        # When Ray adds workers, the steps since the last checkpoint are repeated. So Ray tries this
        # no more often than a checkpoint is due by the clock.
        elastic_resize_monitor_interval_s=60 * recipe.checkpoint_every_minutes,
    )


def _set_deadlines(recipe: TrainingConfig) -> None:
    """Set the environment variables with Ray's time limits for controller and workers."""
    for name in ("WORKER_HEALTH_CHECK_TIMEOUT_S", "COLLECTIVE_TIMEOUT_S"):
        os.environ[f"RAY_TRAIN_{name}"] = str(recipe.stall_seconds)
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(PLACEMENT_SECONDS))
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(POLL_SECONDS))
    # Without this, Ray replaces `print` in the workers.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")


@contextmanager
def _keep_interrupt_handler() -> Iterator[None]:
    """Keep this process's own handler of Ctrl-C. Ray Train replaces it by a handler that exits with
    status 0, as if training had succeeded."""
    before = signal.getsignal(signal.SIGINT)
    is_interrupted = False
    try:
        yield
    except SystemExit:
        is_interrupted = True
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)
    if is_interrupted:
        signal.raise_signal(signal.SIGINT)


def _require_resources(recipe: TrainingConfig) -> None:
    """Raise FractalError if the cluster can never run `min_workers` workers; Ray would wait
    forever."""
    resources = ray.cluster_resources()
    for resource, amount in recipe.resources_per_worker.items():
        available, needed = resources.get(resource, 0), amount * recipe.min_workers
        if available < needed:
            raise FractalError(
                f"min_workers {recipe.min_workers} needs {needed:g} {resource}, the Ray cluster "
                f"has {available:g}: change workers, min_workers or resources_per_worker in "
                f"params.yaml, or name a larger cluster in RAY_ADDRESS"
            )
    prefix, accelerator = "accelerator_type:", recipe.accelerator_type
    if accelerator and not resources.get(f"{prefix}{accelerator}"):
        kinds = [name.removeprefix(prefix) for name in resources if name.startswith(prefix)]
        raise FractalError(
            f"no machine of the Ray cluster has the accelerator {accelerator}, there are "
            f"{', '.join(kinds) or 'none'}: change accelerator_type in params.yaml, or name "
            f"another cluster in RAY_ADDRESS"
        )
