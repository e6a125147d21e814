"""Ray Train's adapter: one function that the workers run, one that launches them.

What goes on: the workers report metrics and checkpoints to Ray; the driver relays the reports to
whoever asked for them (progress bar, MLflow). Running the same run again continues from the last
checkpoint of its folder; Ray does the same when a worker dies.
"""

from __future__ import annotations

import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    UserCallback,
    WorkerGroupError,
)
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Empty, Queue

from fractal_model.config import ModelConfig, StrictModel
from fractal_model.data.loader import train_loader
from fractal_model.data.prepared import open_prepared
from fractal_model.errors import FractalError, one_line
from fractal_model.training.checkpoint import Progress, newest_whole_checkpoint, save_checkpoint
from fractal_model.training.settings import TrainingConfig
from fractal_model.training.trainer import StepReport, Trainer

Report = dict[str, float]
"""Metrics of one moment: position, step, epoch, loss, learning_rate, gradient_norm,
images_per_second."""


class TrainingJob(StrictModel):
    """All that a worker needs; travels to it as JSON."""

    size: str
    model: ModelConfig
    recipe: TrainingConfig
    data: Path | str
    runs: Path
    """Folder of this size's runs; the run's own is named by the fingerprint."""
    fingerprint: str

    @property
    def name(self) -> str:
        return self.fingerprint[:16]

    @property
    def folder(self) -> Path:
        return self.runs / self.name


def run_training(job: TrainingJob, *, on_report: Callable[[Report], None]) -> Path:
    """Train on the connected cluster until the recipe's end; return the last checkpoint's folder.

    FractalError: what a worker raised, or why no worker could be started.
    """
    recipe = job.recipe
    _require_resources(recipe)
    with _Relay(on_report) as relay:
        trainer = TorchTrainer(
            _train_worker,
            train_loop_config={"job": job.model_dump_json()},
            scaling_config=ScalingConfig(
                num_workers=recipe.workers,
                use_gpu=recipe.gpus_per_worker > 0,
                resources_per_worker=_resources(recipe),
            ),
            torch_config=TorchConfig(backend="nccl" if recipe.gpus_per_worker else "gloo"),
            run_config=RunConfig(
                name=job.name,
                storage_path=str(job.runs),
                failure_config=FailureConfig(max_failures=recipe.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=recipe.keep_checkpoints),
                callbacks=[relay.callback],
            ),
        )
        try:
            with _keyboard_interrupt():
                result = trainer.fit()
        except WorkerGroupError as error:
            first = next(iter(error.worker_failures.values()))
            raise FractalError(f"training failed on a worker: {_cause(first)}") from error
        except TrainingFailedError as error:
            raise FractalError(f"training failed: {one_line(error)}") from error
    return Path(result.checkpoint.path)


def _resources(recipe: TrainingConfig) -> dict[str, float]:
    resources: dict[str, float] = {"CPU": recipe.cpus_per_worker}
    if recipe.gpus_per_worker:
        resources["GPU"] = recipe.gpus_per_worker
    return resources


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
    for resource, each in _resources(recipe).items():
        found, needed = there.get(resource, 0), each * recipe.workers
        if found < needed:
            raise FractalError(
                f"{recipe.workers} workers need {needed:g} {resource}s, the Ray cluster has "
                f"{found:g}: change workers, cpus_per_worker or gpus_per_worker in params.yaml, or "
                f"name a larger cluster in RAY_ADDRESS"
            )


def _cause(error: BaseException) -> str:
    """The last line of a worker's failure: its exception without the traceback."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


class _Relay:
    """Brings reports from Ray's controller process to a callable in this one."""

    def __init__(self, on_report: Callable[[Report], None]) -> None:
        self._on_report = on_report
        self._queue = Queue(actor_options={"num_cpus": 0})
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._error: Exception | None = None
        self.callback = _ToQueue(self._queue)

    def __enter__(self) -> _Relay:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()
        self._queue.shutdown()
        if self._error is not None and exception[0] is None:
            raise self._error

    def _run(self) -> None:
        while True:
            finished = self._done.is_set()
            try:
                report = self._queue.get(timeout=0.5)
            except Empty:
                if finished:
                    return
                continue
            try:
                self._on_report(report)
            except Exception as error:
                self._error = self._error or error


class _ToQueue(UserCallback):
    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def after_report(self, run_context: Any, metrics: list[Report], checkpoint: Any) -> None:
        loss = sum(report["loss"] for report in metrics) / len(metrics)
        self._queue.put({**metrics[0], "loss": loss})


def _train_worker(config: dict[str, str]) -> None:
    """What every worker runs."""
    job = TrainingJob.model_validate_json(config["job"])
    recipe, context = job.recipe, ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    split = open_prepared(job.data, "train")
    trainer = Trainer(
        job.model,
        recipe,
        images=len(split),
        rank=rank,
        world_size=world_size,
        device=ray.train.torch.get_device(),
    )
    _resume(trainer, job)
    loader = train_loader(
        split,
        seed=recipe.seed,
        position=trainer.position,
        batch_size=recipe.batch_size,
        rank=rank,
        world_size=world_size,
        flip=recipe.flip,
        end_position=trainer.end_position,
    )
    every = max(1, round(recipe.checkpoint_every_epochs * len(split) / recipe.batch_size))
    meter = _Meter(trainer, len(split))
    for batch in loader:
        step = trainer.step(batch)
        last = trainer.position >= trainer.end_position
        meter.add(step)
        if last or trainer.steps % every == 0:
            _report_checkpoint(trainer, job, meter.report(), rank)
        elif trainer.steps % recipe.log_every_steps == 0:
            ray.train.report(meter.report())


def _resume(trainer: Trainer, job: TrainingJob) -> None:
    found = ray.train.get_checkpoint()
    if found is None:
        return
    with found.as_directory() as folder:
        checkpoint = newest_whole_checkpoint(Path(folder))
    if checkpoint.progress.fingerprint != job.fingerprint:
        raise FractalError(
            f"the checkpoint {found.path} belongs to another run "
            f"({checkpoint.progress.fingerprint[:16]}, this one is {job.name}): remove the folder"
        )
    trainer.restore(checkpoint)


def _report_checkpoint(trainer: Trainer, job: TrainingJob, report: Report, rank: int) -> None:
    """All ranks report, rank 0 with the folder, which Ray copies to the run's storage."""
    if rank != 0:
        ray.train.report(report)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / f"position-{trainer.position:012d}"
        progress = Progress(
            size=job.size,
            fingerprint=job.fingerprint,
            position=trainer.position,
            steps=trainer.steps,
        )
        save_checkpoint(
            folder,
            model=trainer.model,
            optimizer=trainer.optimizer.state_dict(),
            progress=progress,
            ema=trainer.ema,
        )
        ray.train.report(report, checkpoint=Checkpoint.from_directory(folder))


class _Meter:
    """Means since the last report."""

    def __init__(self, trainer: Trainer, images: int) -> None:
        self._trainer = trainer
        self._images = images
        self._reset()

    def add(self, step: StepReport) -> None:
        self._losses.append(step.loss)
        self._last = step

    def report(self) -> Report:
        seconds = time.monotonic() - self._since
        seen = len(self._losses) * self._trainer.recipe.batch_size
        report = {
            "position": self._trainer.position,
            "step": self._trainer.steps,
            "epoch": self._trainer.position / self._images,
            "loss": torch.stack(self._losses).mean().item(),
            "gradient_norm": self._last.gradient_norm.item(),
            "learning_rate": self._last.learning_rate,
            "images_per_second": seen / seconds,
        }
        self._reset()
        return report

    def _reset(self) -> None:
        self._since = time.monotonic()
        self._losses: list[torch.Tensor] = []
        self._last: StepReport | None = None
