"""A callback for Ray's controller that frees the places of workers whose start failed.

Decided here: if a worker fails after its group has its places and before training begins, for
example because Ray ends it for lack of memory, Ray's controller forgets the group (Ray 2.60). The
group would keep its places, and the next one would wait for them for ever. Ray also repeats such a
start without limit; here it counts towards `max_failures`.
"""

from typing import Any

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.worker_group import Worker, WorkerGroup
from ray.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    remove_placement_group,
)


class StartFailedError(Exception):
    """The workers' start failed more than `max_failures` times."""


class FreeFailedStart(ControllerCallback, WorkerGroupCallback):
    """Ends a group of workers whose start failed, and frees its places. `most`: number of failed
    starts that Ray may repeat; -1 means no limit."""

    def __init__(self, most: int) -> None:
        self._most, self._failures = most, 0
        self._places: PlacementGroup | None = None
        """Places of the group that starts."""

    def before_init_train_context(self, workers: list[Worker]) -> dict[str, list[Any]]:
        # If this worker has died, Ray still knows the group and ends it.
        answer: Any = workers[0].execute_async(get_current_placement_group)
        self._places = ray.get(answer)
        return {}

    def after_worker_group_training_start(self, worker_group: WorkerGroup) -> None:
        self._places = None  # From here on Ray ends the group.

    def before_controller_execute_failure_decision(self, failure_decision: FailureDecision) -> None:
        if self._places is None:
            return
        self._free_places()
        self._failures += 1
        if failure_decision == FailureDecision.RETRY and 0 <= self._most < self._failures:
            raise StartFailedError

    def before_controller_abort(self) -> None:
        self._free_places()

    def _free_places(self) -> None:
        if self._places is not None:
            remove_placement_group(self._places)
            self._places = None
