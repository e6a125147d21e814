"""Ray Train's adapter: launches the workers of a run and waits for them.

Running the same run again continues from the last checkpoint of its folder; Ray does the same when
a worker dies or does not answer any more, on as many workers as the recipe's range allows.
"""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import ray
import ray.train
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    WorkerGroupError,
)
from ray.train.torch import TorchConfig, TorchTrainer

from fractal_model.common.errors import FractalError, last_line, one_line
from fractal_model.config.training import TrainingConfig
from fractal_model.training.job import Report, Stopped, TrainingJob
from fractal_model.training.ray_train.best import KeepBest
from fractal_model.training.ray_train.relay import Relay
from fractal_model.training.ray_train.worker import train_worker

PLACEMENT_SECONDS = 30
"""Until the machines for a group of workers have to be there: where one was lost just now, Ray
first plans with it, and then, after this, with those that are left."""
POLL_SECONDS = 0.25
"""How often workers are asked for reports: but while a checkpoint is uploaded they wait at the next
one until the last is taken, with Ray's default of two seconds for longer than a small step."""
_OF_ANOTHER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "gloo",
    "NCCL",
    "DistBackend",
)
"""In what a worker raises when another one is gone."""


def run_training(
    job: TrainingJob,
    *,
    on_report: Callable[[Report], None],
    worker: Callable[[dict[str, str]], None] = train_worker,
) -> Checkpoint:
    """Train on the connected cluster until the recipe's end; return the last checkpoint. `worker`
    is what each of them runs.

    FractalError: what a worker raised, why the run ended itself, or why no worker could be started.
    """
    recipe = job.recipe
    stopped: list[Stopped] = []

    def sort(report: Report | Stopped) -> None:
        if isinstance(report, Stopped):
            stopped.append(report)
        else:
            on_report(report)

    _require_resources(recipe)
    _set_deadlines(recipe)
    with Relay(job.local / "reports" / job.run_id, sort) as relay:
        trainer = TorchTrainer(
            worker,
            train_loop_config={"job": job.model_dump_json()},
            scaling_config=_scaling(recipe),
            torch_config=TorchConfig(
                backend="nccl" if recipe.uses_gpu else "gloo",
                timeout_s=math.ceil(recipe.stall_seconds),  # of the others, where one hangs
            ),
            run_config=RunConfig(
                name=job.name,
                storage_path=job.storage,
                failure_config=FailureConfig(max_failures=recipe.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=recipe.keep_checkpoints),
                callbacks=[relay.callback, KeepBest(f"{job.storage}/{job.name}")],
            ),
        )
        try:
            with _keyboard_interrupt():
                result = trainer.fit()
        except WorkerGroupError as error:
            raise FractalError(
                f"training failed on a worker and max_failures is {recipe.max_failures}: "
                f"{_first_cause(error.worker_failures)}; mend it and run again, it goes on from "
                f"the last checkpoint"
            ) from error
        except TrainingFailedError as error:
            raise FractalError(
                f"training failed: {one_line(error)}; run again, it goes on from the last "
                f"checkpoint (Ray's logs are in /tmp/ray/session_latest/logs/train)"
            ) from error
    if stopped:
        raise FractalError(f"training ended: {stopped[0].stopped}")
    return result.checkpoint


def _scaling(recipe: TrainingConfig) -> ScalingConfig:
    fixed = recipe.min_workers == recipe.workers
    return ScalingConfig(
        num_workers=recipe.workers if fixed else (recipe.min_workers, recipe.workers),
        use_gpu=recipe.uses_gpu,
        resources_per_worker=dict(recipe.resources_per_worker),
        accelerator_type=recipe.accelerator_type,
        # To take in machines that have come back goes back to the last checkpoint: no more often
        # than one is written by the clock.
        elastic_resize_monitor_interval_s=60 * recipe.checkpoint_every_minutes,
    )


def _set_deadlines(recipe: TrainingConfig) -> None:
    """Ray takes them from the environment, for the controller and the workers."""
    # What people should read comes with the reports; `print` stays Python's own.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(recipe.stall_seconds)
    os.environ["RAY_TRAIN_COLLECTIVE_TIMEOUT_S"] = str(recipe.stall_seconds)
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(PLACEMENT_SECONDS))
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(POLL_SECONDS))


@contextmanager
def _keyboard_interrupt() -> Iterator[None]:
    """Ray Train answers Ctrl-C with its own handler, which exits with 0: put the handler
    back that was there, and let it answer."""
    before = signal.getsignal(signal.SIGINT)
    interrupted = False
    try:
        yield
    except SystemExit:
        interrupted = True
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)
    if interrupted:
        signal.raise_signal(signal.SIGINT)


def _require_resources(recipe: TrainingConfig) -> None:
    """FractalError at once where Ray would wait for machines that may never come."""
    there = ray.cluster_resources()
    for resource, each in recipe.resources_per_worker.items():
        found, needed = there.get(resource, 0), each * recipe.min_workers
        if found < needed:
            raise FractalError(
                f"{recipe.min_workers} workers need {needed:g} {resource}, the Ray cluster has "
                f"{found:g}: change workers, min_workers or resources_per_worker in params.yaml, "
                f"or name a larger cluster in RAY_ADDRESS"
            )
    wanted = recipe.accelerator_type
    if wanted and not there.get(f"accelerator_type:{wanted}"):
        kinds = [name.split(":")[1] for name in there if name.startswith("accelerator_type:")]
        raise FractalError(
            f"no machine of the Ray cluster has the accelerator {wanted}, there are "
            f"{', '.join(kinds) or 'none'}: change accelerator_type in params.yaml, or name "
            f"another cluster in RAY_ADDRESS"
        )


def _first_cause(failures: Mapping[int, BaseException]) -> str:
    """Of the workers' failures the one that was not for the loss of another worker."""
    causes = [last_line(failure) for failure in failures.values()]
    return min(causes, key=lambda cause: any(word in cause for word in _OF_ANOTHER))
