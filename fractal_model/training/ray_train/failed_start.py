"""A callback for Ray's controller that frees the places of workers whose start failed.

Decided here: if a worker fails after its group has its places and before training begins, for
example because Ray ends it for lack of memory, Ray's controller forgets the group (Ray 2.60). The
group would keep its places, and the next one would wait for them for ever.
"""

from contextlib import suppress
from typing import Any

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.worker_group import Worker, WorkerGroup, WorkerGroupContext
from ray.util.placement_group import get_current_placement_group, remove_placement_group

ANSWER_SECONDS = 5.0


class FreeFailedStart(ControllerCallback, WorkerGroupCallback):
    """Ends a group of workers that has begun to start, and frees its places, before the next group
    starts or the controller ends."""

    def __init__(self) -> None:
        self._places: list[Any] = []
        """The answers of the workers that start: the placement group that they are in."""

    def before_worker_group_start(self, worker_group_context: WorkerGroupContext) -> None:
        self._free_places()

    def before_init_train_context(self, workers: list[Worker]) -> dict[str, list[Any]]:
        self._places = [worker.execute_async(get_current_placement_group) for worker in workers]
        return {}

    def after_worker_group_training_start(self, worker_group: WorkerGroup) -> None:
        self._places = []  # From here on Ray ends the group.

    async def before_controller_shutdown(self) -> None:
        self._free_places()

    def _free_places(self) -> None:
        for place in self._places:
            with suppress(ray.exceptions.RayError):  # This worker has died; others know the same.
                remove_placement_group(ray.get(place, timeout=ANSWER_SECONDS))
                break
        self._places = []
