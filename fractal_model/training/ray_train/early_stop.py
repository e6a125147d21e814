"""Early stopping: ends a training whose held-out likelihood has not improved for some epochs.

Decided here: training may end at any step that is validated. The points of earlier steps decide,
and rank 0 waits for the last of these points. So the step at which a run stops does not depend on
the speed of validation, unless a point takes longer than rank 0 waits.
"""

import math
import time
from contextlib import suppress

from fractal_model.training.collectives import broadcast_from_rank_zero
from fractal_model.training.job import TrainingJob
from fractal_model.training.ray_train.validation_points import MOST_UNFINISHED, ValidationPoints

_POLL_SECONDS = 0.2


class EarlyStop:
    """Decides if a run ends early. If `stop_after_epochs_without_gain` in the recipe is 0, it never
    does. Else it ends after `patience` images without a better point."""

    def __init__(self, job: TrainingJob, patience: int, points: ValidationPoints) -> None:
        self._patience = patience if job.recipe.stop_after_epochs_without_gain else 0
        self._score = job.score
        self._points = points
        # The other ranks wait for rank 0, at most stall_seconds.
        self._wait = min(job.recipe.validation.timeout_seconds, job.recipe.stall_seconds / 2)
        self.is_due = False

    def decide(self, position: int, previous: int) -> None:
        """Set `is_due` to True if training must end at this validated step. `position`: images seen
        at this step. `previous`: images seen at the validated step before it; 0 if there is none or
        its point was left out.
        All ranks must call `decide` together."""
        if self._patience:
            self.is_due = broadcast_from_rank_zero(self._is_without_gain(position, previous))

    def _is_without_gain(self, position: int, previous: int) -> bool:
        with suppress(OSError):  # Without an answer of the storage training continues.
            is_stuck = len(self._points.unfinished()) >= MOST_UNFINISHED
            if previous > 0 and not is_stuck and not self._points.is_given_up():
                self._wait_for(previous)
            earlier = [each for each in self._points.positions() if each < position]
            return self._images_without_gain(earlier) >= self._patience
        return False

    def _wait_for(self, position: int) -> None:
        deadline = time.monotonic() + self._wait
        while self._points.read(position) is None and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)

    def _images_without_gain(self, positions: list[int]) -> int:
        """Return the number of images seen from the best of the measured points to the last one."""
        best, best_position, last = math.inf, 0, 0
        for position in positions:
            point = self._points.read(position)
            bits = None if point is None else point.metrics.get(self._score)
            if bits is not None:
                last = position
                if bits < best:
                    best, best_position = bits, position
        return last - best_position
