"""Ray Train's adapter: launches the workers of a run and waits for them.

A run that is started again goes on from the last checkpoint of its folder. Ray does the same when a
worker dies or stops answering, with as many workers as the recipe's range allows. Where Ray gives
up because a machine has too little memory, training goes on with three quarters of the workers.
"""

import logging
import math
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import ray
import ray.train
from ray.train.torch import TorchConfig

# What `ray.train` has under these names when it runs, but not in its annotations.
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.torch.torch_trainer import TorchTrainer

from fractal_model.common.errors import FractalError, last_line, one_line
from fractal_model.config.training import TrainingConfig
from fractal_model.training.job import Report, Stopped, TrainingJob
from fractal_model.training.ray_train.best import KeepBest
from fractal_model.training.ray_train.relay import Relay
from fractal_model.training.ray_train.worker import train_worker

PLACEMENT_SECONDS = 30
"""How long Ray waits for the machines of a group of workers. Where one was lost just now, Ray first
plans with it, and after this time with those that are left."""
POLL_SECONDS = 0.25
"""How often workers are asked for reports. A worker waits at its next report until the last one is
taken; Ray's default of two seconds is longer than a small step."""
_OUT_OF_MEMORY = re.compile(
    r"Memory on the node \(IP: ([^,)]+).*? was ([\d.]+)GB used / ([\d.]+)GB limit", re.DOTALL
)
"""Matches what Ray says where it ends processes before the system would."""
_LOSS_OF_ANOTHER = re.compile(r"Connection (closed|reset) by peer|gloo|NCCL|DistBackend")
"""Matches what a worker raises when another worker is gone."""
logger = logging.getLogger("fractal.training")


def run_training(
    job: TrainingJob,
    *,
    on_report: Callable[[Report], None],
    worker: Callable[[dict[str, str]], None] = train_worker,
) -> ray.train.Checkpoint:
    """Train on the connected cluster until the recipe's end; return the last checkpoint. Each
    worker runs `worker`.

    FractalError: what a worker raised, why the run ended itself, or why no worker could be started.
    """
    recipe = job.recipe
    reasons: list[str] = []

    def sort(report: Report | Stopped) -> None:
        if isinstance(report, Stopped):
            reasons.append(report.stopped)
        else:
            on_report(report)

    def train(workers: int) -> ray.train.Result:
        trainer = TorchTrainer(
            worker,
            train_loop_config={"job": job.model_dump_json()},
            scaling_config=_scaling(recipe, workers),
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
        with _keyboard_interrupt():
            return trainer.fit()

    _require_resources(recipe)
    _set_deadlines(recipe)
    with Relay(job.local / "reports" / job.run_id, sort) as relay:
        result = _train_within_memory(train, recipe)
    if reasons:
        raise FractalError(f"training ended: {reasons[0]}")
    assert result.checkpoint is not None  # a training ends with one
    return result.checkpoint


def _train_within_memory(
    train: Callable[[int], ray.train.Result], recipe: TrainingConfig
) -> ray.train.Result:
    """Train with fewer workers each time that a machine's memory does not hold its share of them,
    `max_failures` times. FractalError: why training failed."""
    workers, failures = recipe.workers, 0
    while True:
        try:
            return train(workers)
        except (ray.train.TrainingFailedError, ray.exceptions.OutOfMemoryError) as error:
            failures += 1
            shortage = _memory_shortage(error, workers)
            if shortage is None or 0 <= recipe.max_failures < failures:  # -1: no limit
                raise FractalError(f"training failed{_reason(error, shortage, recipe)}") from error
        workers = max(recipe.min_workers, workers * 3 // 4)
        logger.warning("%s; training goes on with at most %d", shortage, workers)


def _memory_shortage(error: BaseException, workers: int) -> str | None:
    """Which machine had too little memory for its workers, if the error is about that."""
    failures = error.worker_failures if isinstance(error, ray.train.WorkerGroupError) else {}
    for cause in (error, *failures.values()):
        if match := _OUT_OF_MEMORY.search(str(cause)):
            machine, used, limit = match.groups()
            return (
                f"the machine {machine} has too little memory for its share of the workers "
                f"({workers}): {used} of {limit} GB were in use, and Ray ended processes there"
            )
    return None


def _reason(error: BaseException, shortage: str | None, recipe: TrainingConfig) -> str:
    again = "run again, it goes on from the last checkpoint"
    if shortage is not None:
        return (
            f": {shortage}; lower workers and min_workers in params.yaml or add memory, and {again}"
        )
    if isinstance(error, ray.train.WorkerGroupError):
        return (
            f" on a worker and max_failures is {recipe.max_failures}: "
            f"{_first_cause(error.worker_failures)}; mend it and {again}"
        )
    return f": {one_line(error)}; {again} (Ray's logs are in /tmp/ray/session_latest/logs/train)"


def _scaling(recipe: TrainingConfig, workers: int) -> ScalingConfig:
    """Resources of a group of at most `workers` workers."""
    fixed = recipe.min_workers == workers
    return ScalingConfig(
        num_workers=workers if fixed else (recipe.min_workers, workers),
        use_gpu=recipe.uses_gpu,
        resources_per_worker=dict(recipe.resources_per_worker),
        accelerator_type=recipe.accelerator_type,
        # Growing again, once machines have come back, repeats the steps since the last checkpoint:
        # no more often than a checkpoint is written by the clock.
        elastic_resize_monitor_interval_s=60 * recipe.checkpoint_every_minutes,
    )


def _set_deadlines(recipe: TrainingConfig) -> None:
    """Ray reads them from the environment, for the controller and the workers."""
    for name in ("WORKER_HEALTH_CHECK_TIMEOUT_S", "COLLECTIVE_TIMEOUT_S"):
        os.environ[f"RAY_TRAIN_{name}"] = str(recipe.stall_seconds)
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(PLACEMENT_SECONDS))
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(POLL_SECONDS))
    # People read what comes with the reports; `print` stays Python's own.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")


@contextmanager
def _keyboard_interrupt() -> Iterator[None]:
    """Let the handler answer Ctrl-C that was there before Ray Train's own, which exits with 0."""
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
    resources = ray.cluster_resources()
    for resource, each in recipe.resources_per_worker.items():
        available, needed = resources.get(resource, 0), each * recipe.min_workers
        if available < needed:
            raise FractalError(
                f"min_workers {recipe.min_workers} needs {needed:g} {resource}, the Ray cluster "
                f"has {available:g}: change workers, min_workers or resources_per_worker in "
                f"params.yaml, or name a larger cluster in RAY_ADDRESS"
            )
    prefix, wanted = "accelerator_type:", recipe.accelerator_type
    if wanted and not resources.get(f"{prefix}{wanted}"):
        kinds = [name.removeprefix(prefix) for name in resources if name.startswith(prefix)]
        raise FractalError(
            f"no machine of the Ray cluster has the accelerator {wanted}, there are "
            f"{', '.join(kinds) or 'none'}: change accelerator_type in params.yaml, or name "
            f"another cluster in RAY_ADDRESS"
        )


def _first_cause(failures: Mapping[int, BaseException]) -> str:
    """The failure that was not caused by the loss of another worker, if there is one."""
    causes = [last_line(failure) for failure in failures.values()]
    return min(causes, key=lambda cause: bool(_LOSS_OF_ANOTHER.search(cause)))
