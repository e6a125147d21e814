"""Brings the workers' reports from Ray's controller process to a callable in this one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import ray
from ray.train import UserCallback
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fractal_model.training.job import Report


class Relay:
    """Within its block, `callback` hands on what all workers have reported together."""

    def __init__(self, on_report: Callable[[Report], None]) -> None:
        self._on_report = on_report
        # Beside this process: on a machine that is lost it would take the training with it.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._error: Exception | None = None
        self.callback = _ToQueue(self._queue)

    def __enter__(self) -> Relay:
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
        if "stopped" in metrics[0]:
            self._queue.put(metrics[0])
            return
        # The loss is of all workers already; the slowest of them decides about the rest.
        waiting = max(report["data_wait_share"] for report in metrics)
        self._queue.put({**metrics[0], "data_wait_share": waiting})
