"""The workers' part in validation: they wait for it or measure themselves, within limits.

Decided here: at most two validations wait for the Ray task at a time. With more, training waits
until one ends, at most twice `timeout_seconds` and `max_share` of the training time in all. When
this is used up, points are left out, and the run says so once. If the workers use all GPUs,
training pauses and all ranks measure together, each time for at most `max_share` of the mean time
between two validations, and no longer than half of `stall_seconds`. An error, also
of memory, gives a point with its reason. A rank that hangs is restarted as at any other step;
after the second time at one point the run is not validated any more.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import torch

# `ray.train` has these names at run time, but its type annotations do not.
from ray.train.v2.api.reported_checkpoint import ReportedCheckpointStatus
from ray.train.v2.api.validation_config import ValidationTaskConfig

from fractal_model.config.weights import MODEL
from fractal_model.training.collectives import broadcast_from_rank_zero
from fractal_model.training.job import TrainingJob, ValidationPoint
from fractal_model.training.ray_train.measurement import Processes, measure
from fractal_model.training.ray_train.rank_parts import RankParts
from fractal_model.training.ray_train.stored import reported_checkpoints
from fractal_model.training.ray_train.validation_points import MOST_UNFINISHED, ValidationPoints
from fractal_model.training.trainer import Trainer

MOST_WAITING = 2
"""Number of validations that may wait or be measured, until training waits for one of them."""
_POLL_SECONDS = 0.2
Order = bool | ValidationTaskConfig
"""What is reported with a checkpoint: True if the Ray task is to measure it, False if not, and
settings if it is to finish a point that the workers have measured."""


class ValidationTurn:
    """Decides on each rank what happens with validation at a step. `steps`: number of steps from
    one validation to the next. `add_note` receives sentences for people."""

    def __init__(
        self,
        job: TrainingJob,
        trainer: Trainer,
        points: ValidationPoints,
        *,
        rank: int,
        world_size: int,
        steps: int,
        by_workers: bool,
        add_note: Callable[[str], None],
    ) -> None:
        self._job, self._trainer, self._points = job, trainer, points
        self._rank, self._world_size = rank, world_size
        self._steps, self._by_workers, self._add_note = steps, by_workers, add_note
        self._began, self._steps_taken, self._spent = time.monotonic(), 0, 0.0
        self.left_out: set[int] = set()
        """On rank 0: numbers of images seen at the validations that were left out."""
        self._is_note_given = self._is_grid_too_slow = False

    def count_step(self) -> None:
        """Count a training step. The first one may compile and gives no measure of the time."""
        if self._steps_taken == 0:
            self._began = time.monotonic()
        self._steps_taken += 1

    def take(self, *, is_last: bool) -> Order:
        """Return what rank 0 reports with the checkpoint of this step; on other ranks the value
        means nothing. All ranks must call this together."""
        started = time.monotonic()
        try:
            if self._by_workers:
                order = self._measure()
            else:
                order = self._rank == 0 and (is_last or self._has_room())
            if order is False:
                self.left_out.add(self._trainer.position)
            return order
        finally:
            self._spent += time.monotonic() - started

    def _has_room(self) -> bool:
        """Wait until a further validation may be reported. False: the wait took too long."""
        limit = self._limit(self._left())
        deadline = time.monotonic() + limit
        while self._waiting() >= MOST_WAITING:
            if time.monotonic() >= deadline:
                self._say_once(
                    "a validation takes longer than training from one to the next, so points are "
                    "left out: lower validation.images or passes, or raise validate_every_epochs"
                )
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def _waiting(self) -> int:
        reported = reported_checkpoints(timeout=self._job.recipe.stall_seconds / 4)
        pending = ReportedCheckpointStatus.PENDING_VALIDATION
        return sum(entry.status == pending for entry in reported)

    def _measure(self) -> Order:
        """Measure the weights on all ranks; rank 0 stores the point."""
        trainer, position = self._trainer, self._trainer.position
        place = self._job.place(position, trainer.steps)
        order = ValidationTaskConfig(
            fn_kwargs={"position": position},
            timeout_s=self._job.recipe.validation.timeout_seconds,
        )
        if not broadcast_from_rank_zero(self._rank == 0 and self._begin(place)):
            return order if self._rank == 0 and self._has_measured(position) else False
        point, grids = self._measure_together(place)
        self._is_grid_too_slow |= point.failure is not None and bool(point.metrics)
        if self._rank != 0:
            return False
        try:
            self._points.store_measured(point, grids)
        except OSError:  # Training does not depend on it.
            return False
        return order

    def _begin(self, place: ValidationPoint) -> bool:
        """On rank 0, record that measuring begins. False: the point exists, or must not be
        measured."""
        points, position = self._points, place.position
        with suppress(OSError):  # Training does not depend on it.
            is_repeated = self._has_measured(position) or points.read(position) is not None
            if is_repeated or points.is_given_up():
                return False
            interrupted = len(set(points.unfinished()) - {position})
            if max(interrupted, points.attempts(position)) >= MOST_UNFINISHED:
                points.give_up(
                    place,
                    f"{MOST_UNFINISHED} validations were begun and gave no result, because a "
                    f"worker died or hung or the storage failed, so there are no more in this run: "
                    f"look at the workers' logs, lower validation.images, and start the run again",
                )
                return False
            points.start(position)
            return True
        return False

    def _has_measured(self, position: int) -> bool:
        with suppress(OSError):
            return self._points.read_measured(position) is not None
        return False

    def _measure_together(self, place: ValidationPoint) -> tuple[ValidationPoint, dict[str, bytes]]:
        recipe, trainer = self._job.recipe, self._trainer
        seconds = broadcast_from_rank_zero(self._limit(self._share_of_interval()))
        parts = RankParts(
            self._rank, self._world_size, chunk=recipe.images_per_worker, seconds=seconds
        )
        states = {MODEL: trainer.model.state_dict(), **trainer.averages.state()}
        models = {
            name: partial(parts.copy_model, self._job.model, state)
            for name, state in states.items()
        }
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")  # As in the Ray task and in evaluations.
        measured = measure(
            self._job,
            models,
            place,
            processes=Processes(parts.run, parts),
            with_grids=not self._is_grid_too_slow,
        )
        torch.set_float32_matmul_precision(precision)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return measured

    def _limit(self, seconds: float) -> float:
        recipe = self._job.recipe
        return min(recipe.validation.timeout_seconds, recipe.stall_seconds / 2, seconds)

    def _left(self) -> float:
        """Seconds that training may still wait."""
        settings = self._job.recipe.validation
        allowed = MOST_UNFINISHED * settings.timeout_seconds + settings.max_share * self._trained()
        return max(0.0, allowed - self._spent)

    def _share_of_interval(self) -> float:
        """Return `max_share` of the mean time between two validations, in seconds."""
        seconds = self._trained() / max(1, self._steps_taken - 1) * self._steps
        return self._job.recipe.validation.max_share * seconds

    def _trained(self) -> float:
        return time.monotonic() - self._began - self._spent

    def _say_once(self, note: str) -> None:
        if not self._is_note_given:
            self._is_note_given = True
            self._add_note(note)
