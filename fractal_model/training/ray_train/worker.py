"""The function that every worker of a training runs, under Ray Train.

Decided here: all workers report metrics and checkpoints to Ray together, at steps that each rank
computes from the number of images seen. Only rank 0's clock decides when a checkpoint is due
because of the time. A checkpoint is written to a scratch folder and uploaded to the run's storage
while training continues. Ray delivers reports in order: during an upload, a thread of Ray on rank 0
keeps later reports until the upload ends. Only the next checkpoint waits for the upload.
"""

import time
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any

import ray.train.torch
from ray.train import Checkpoint, CheckpointUploadMode

from fractal_model.checkpoints.checkpoint import Progress, save_checkpoint
from fractal_model.common.errors import FractalError
from fractal_model.common.logs import keep_secrets_out_of_logs
from fractal_model.data.holdout import open_training_images
from fractal_model.data.loader import train_loader
from fractal_model.training.collectives import broadcast_from_rank_zero
from fractal_model.training.efficiency import peak_gflops
from fractal_model.training.job import START_FOLDER, Stopped, TrainingJob
from fractal_model.training.meter import Meter
from fractal_model.training.ray_train.early_stop import EarlyStop
from fractal_model.training.ray_train.own_deadline import OwnDeadline
from fractal_model.training.ray_train.stored import (
    load_newest_undamaged,
    load_on_all_ranks,
    remove_incomplete,
    reported_checkpoints,
)
from fractal_model.training.ray_train.upload import Upload, new_scratch, remove_abandoned_scratch
from fractal_model.training.ray_train.validation_points import ValidationPoints
from fractal_model.training.ray_train.validation_turn import Order, ValidationTurn
from fractal_model.training.trainer import NotFiniteError, StartWeights, StepReport, Trainer

BY_WORKERS = "by workers"


def train_worker(config: dict[str, str]) -> None:
    """Train to the end, from the last checkpoint if any. `config["job"]`: the TrainingJob as JSON.
    If `config["validation"]` is BY_WORKERS, the workers measure held-out images themselves."""
    keep_secrets_out_of_logs()
    try:
        by_workers = config.get("validation") == BY_WORKERS
        _Worker(TrainingJob.model_validate_json(config["job"]), by_workers).run()
    except StoppedError as error:
        # The error is reported, not raised, because Ray restarts workers that raise.
        ray.train.report(Stopped(stopped=str(error)).model_dump())


class StoppedError(FractalError):
    """An error that would come again after a restart, so all ranks end the training."""


class _Worker:
    """One rank of a training: resumes, takes steps, reports metrics and saves checkpoints."""

    def __init__(self, job: TrainingJob, by_workers: bool) -> None:
        context = ray.train.get_context()
        self._job = job
        self._rank, self._world_size = context.get_world_rank(), context.get_world_size()
        self._split = open_training_images(job.data, job.recipe.holdout)
        device, operations, peak = ray.train.torch.get_device(), job.gflop_per_image, None
        if operations is not None:  # Measured first, so that its matrices add to no model.
            local_rank = context.get_local_rank()
            peak = peak_gflops(device, job.recipe.precision, local_rank=local_rank)
        self._trainer = Trainer(
            job.model,
            job.recipe,
            images=len(self._split),
            rank=self._rank,
            world_size=self._world_size,
            device=device,
            start=self._start_weights(),
        )
        self._skipped: list[int] = []
        self._meter = Meter(
            self._trainer,
            len(self._split),
            self._world_size,
            gflop_per_image=operations,
            peak_gflops=peak,
        )
        self._upload: Upload | None = None
        self._deadline = OwnDeadline(job.recipe.stall_seconds)
        self._remove_leftovers()
        self._resume(ray.train.get_checkpoint())
        if self._trainer.position:
            epoch = self._trainer.position / len(self._split)
            self._meter.add_note(f"continues from the checkpoint at epoch {epoch:.2f}")
        self._steps_per_checkpoint = self._steps_of(job.recipe.checkpoint_every_epochs)
        self._steps_per_validation = self._steps_of(job.recipe.validate_every_epochs)
        self._prepare_validation(by_workers)
        if self._is_validated(is_last=False):  # An earlier process may have stopped here.
            self._decide_early_stop()
        self._meter.start()
        self._saved_at = time.monotonic()

    def _prepare_validation(self, by_workers: bool) -> None:
        job, stored = self._job, ray.train.get_context().get_storage()
        points = ValidationPoints(stored.storage_filesystem, stored.experiment_fs_path)
        patience = self._steps_of(job.recipe.stop_after_epochs_without_gain)
        self._early_stop = EarlyStop(job, patience * job.recipe.batch_size, points)
        self._validation = ValidationTurn(
            job,
            self._trainer,
            points,
            rank=self._rank,
            world_size=self._world_size,
            steps=self._steps_per_validation,
            by_workers=by_workers,
            add_note=self._meter.add_note,
        )

    def _start_weights(self) -> StartWeights | None:
        """Return the function that reads the weights to start from. None: they are random, or a
        checkpoint replaces them."""
        if self._job.start is None or ray.train.get_checkpoint() is not None:
            return None
        context = ray.train.get_context()
        storage = context.get_storage()
        start = Checkpoint(
            f"{storage.experiment_fs_path}/{START_FOLDER}", storage.storage_filesystem
        )
        return lambda: load_on_all_ranks(start, context).weights

    def run(self) -> None:
        while self._trainer.position < self._trainer.end_position and not self._early_stop.is_due:
            try:
                with self._deadline.hold():
                    self._train()
            except NotFiniteError as error:
                self._recover(error)

    def _train(self) -> None:
        """Train from the trainer's position until the recipe ends or training stops early."""
        recipe, trainer = self._job.recipe, self._trainer
        loader = train_loader(
            self._split,
            seed=recipe.seed,
            position=trainer.position,
            batch_size=recipe.batch_size,
            rank=self._rank,
            world_size=self._world_size,
            num_workers=recipe.loader_processes,
            flip=recipe.flip,
            end_position=trainer.end_position,
        )
        for batch in self._meter.time_loading(loader):
            self._deadline.renew()
            if trainer.position in self._skipped:
                trainer.skip_batch()
            else:
                self._count(trainer.start_step(batch))
                self._validation.count_step()
            is_last = trainer.position >= trainer.end_position
            is_log_step = trainer.steps % recipe.log_every_steps == 0
            is_due = trainer.steps % self._steps_per_checkpoint == 0
            validate = self._is_validated(is_last)
            if is_last or is_due or validate or is_log_step:
                self._count(trainer.finish_step())
            if is_last or is_due or validate or (is_log_step and self._is_overdue()):
                with self._meter.pause():
                    order: Order = False
                    if validate:
                        self._deadline.renew()
                        self._decide_early_stop()
                        order = self._validation.take(is_last=is_last or self._early_stop.is_due)
                    self._deadline.lift()  # An earlier checkpoint's upload may take its time.
                    self._report_checkpoint(order)
                if self._early_stop.is_due:
                    return
            elif is_log_step:
                self._report_metrics()
            self._deadline.renew()  # for the next batch

    def _count(self, finished: StepReport | None) -> None:
        """Add a finished step, if there is one, to what is reported."""
        if finished is not None:
            self._meter.add_step(finished)

    def _steps_of(self, epochs: int) -> int:
        return self._job.recipe.steps(epochs, len(self._split))

    def _is_validated(self, is_last: bool) -> bool:
        """True if the weights after the current step are to be measured on held-out images."""
        recipe = self._job.recipe
        has_held_out_images = recipe.holdout or "validation" in self._split.manifest.splits
        if not recipe.validate_every_epochs or not has_held_out_images:
            return False
        return is_last or self._trainer.steps % self._steps_per_validation == 0

    def _decide_early_stop(self) -> None:
        steps = self._trainer.steps
        previous = (steps - 1) // self._steps_per_validation * self._steps_per_validation
        earlier = previous * self._job.recipe.batch_size
        is_left_out = earlier in self._validation.left_out
        self._early_stop.decide(self._trainer.position, 0 if is_left_out else earlier)
        if self._early_stop.is_due:
            epochs = self._job.recipe.stop_after_epochs_without_gain
            self._meter.add_note(
                f"the run ends early: no gain on held-out images for {epochs} epochs"
            )

    def _is_overdue(self) -> bool:
        """True if rank 0's last checkpoint is older than `checkpoint_every_minutes`."""
        minutes = (time.monotonic() - self._saved_at) / 60
        return broadcast_from_rank_zero(minutes >= self._job.recipe.checkpoint_every_minutes)

    def _recover(self, error: NotFiniteError) -> None:
        """Mark the batch that raised `error` to be skipped. If the recipe says `roll-back`, also
        return to the last checkpoint. StoppedError: the recipe allows no more skipped batches."""
        recipe = self._job.recipe
        self._skipped.append(error.position)
        if recipe.non_finite == "stop":
            raise StoppedError(f"{error}, or skip such batches (non_finite: skip)")
        if len(self._skipped) > recipe.max_non_finite:
            raise StoppedError(
                f"the number of batches with a loss or gradient that is not finite is "
                f"{len(self._skipped)}: raise max_non_finite ({recipe.max_non_finite}), or solve "
                f"the last problem: {error}"
            )
        self._meter.add_note(f"a batch was skipped: {error}")
        if recipe.non_finite == "roll-back":
            reported = reported_checkpoints()
            self._trainer.reset()
            self._resume(reported[-1].checkpoint if reported else None)

    def _resume(self, newest: Checkpoint | None) -> None:
        """Load the checkpoint `newest`; if it is damaged, load the newest undamaged one before it.
        With None, load nothing. StoppedError: the checkpoint belongs to another run."""
        if newest is None:
            return
        resumed = load_newest_undamaged(newest)
        for damage in resumed.damaged:
            self._meter.add_note(f"an earlier checkpoint is used: {damage}")
        progress = resumed.checkpoint.progress
        if progress.fingerprint != self._job.fingerprint:
            raise StoppedError(
                f"the checkpoint {newest.path} belongs to the run {progress.fingerprint[:16]}, "
                f"expected {self._job.name}: remove the checkpoint's folder and run again"
            )
        self._trainer.restore(resumed.checkpoint)
        self._skipped = sorted({*self._skipped, *progress.skipped})

    def _remove_leftovers(self) -> None:
        """Remove what killed workers left behind: scratch folders and, on rank 0, incomplete
        checkpoints."""
        remove_abandoned_scratch()
        if self._rank != 0:
            return
        with suppress(OSError):  # Training does not depend on it.
            storage = ray.train.get_context().get_storage()
            reported = reported_checkpoints()
            remove_incomplete(
                storage.storage_filesystem,
                storage.experiment_fs_path,
                keep=frozenset(PurePosixPath(entry.checkpoint.path).name for entry in reported),
            )

    def _metrics(self) -> dict[str, Any]:
        return self._meter.finish_report(len(self._skipped)).model_dump(exclude_none=True)

    def _report_metrics(self) -> None:
        # Only the thread that waits depends on the mode, so ranks may use different modes.
        is_uploading = self._upload is not None and not self._upload.done.is_set()
        mode = CheckpointUploadMode.ASYNC if is_uploading else CheckpointUploadMode.SYNC
        ray.train.report(self._metrics(), checkpoint_upload_mode=mode)

    def _report_checkpoint(self, validation: Order) -> None:
        """Report metrics to Ray; rank 0 also saves a checkpoint and reports it with what Ray's
        validation task is to do."""
        self._saved_at = time.monotonic()
        metrics, trainer = self._metrics(), self._trainer
        if self._rank != 0:
            ray.train.report(metrics)
            return
        if self._upload is not None:
            self._upload.done.wait()  # The disk then holds one scratch copy only.
        folder = new_scratch() / "checkpoint"
        save_checkpoint(
            folder,
            model=trainer.model,
            optimizer=trainer.optimizer.state_dict(),
            progress=Progress(
                size=self._job.size,
                fingerprint=self._job.fingerprint,
                position=trainer.position,
                steps=trainer.steps,
                skipped=tuple(self._skipped),
            ),
            averages=trainer.averages.state(),
            serving=self._job.serving,
        )
        self._upload = Upload(folder)
        ray.train.report(
            metrics,
            checkpoint=Checkpoint.from_directory(folder),
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=self._upload,
            validation=validation,
        )
