"""System metrics of all machines of a Ray cluster, gathered by the driver.

Decided here: a Ray actor without reserved resources measures each machine, because workers need not
reach MLflow, and a machine without workers may be the one that is overloaded. The driver asks all
actors at once and does not wait for a machine that does not answer. An actor whose machine was lost
is forgotten, and a new machine gets one.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fractal_model.common.errors import one_line
from fractal_model.tracking.machine_metrics import PREFIX, MachineMonitor

MEASURE_SECONDS = 10.0
"""Seconds between two measurements, as with MLflow's own monitor."""
ANSWER_SECONDS = 5.0
logger = logging.getLogger("fractal.training")


class Machines:
    """The machines of the connected cluster."""

    def __init__(self) -> None:
        self._monitors: dict[str, Any] = {}
        """Actor by Ray's id of the machine."""
        self._names: dict[str, str] = {}
        """Name by Ray's id of the machine."""

    def measure(self) -> dict[str, float]:
        """Return the system metrics of all machines that answer. A name such as
        `system/HOST/cpu_utilization_percentage` contains the machine's host name."""
        self._update({node["NodeID"]: node for node in ray.nodes() if node["Alive"]})
        answers = {actor.measure.remote(): node for node, actor in self._monitors.items()}
        ready, _ = ray.wait([*answers], num_returns=len(answers), timeout=ANSWER_SECONDS)
        values: dict[str, float] = {}
        for answer in ready:
            node = answers[answer]
            try:
                metrics = ray.get(answer)
            except ray.exceptions.RayError:  # The machine or the actor is lost.
                del self._monitors[node]
                continue
            values |= {f"{PREFIX}{self._names[node]}/{k}": v for k, v in metrics.items()}
        return values

    def _update(self, nodes: Mapping[str, Mapping[str, Any]]) -> None:
        """Start an actor on each machine that has none, and forget those of lost machines."""
        self._monitors = {node: self._monitors[node] for node in self._monitors if node in nodes}
        for node, details in nodes.items():
            if node not in self._names:
                host = str(details["NodeManagerHostname"])
                is_taken = host in self._names.values()
                self._names[node] = f"{host}-{node[:6]}" if is_taken else host
            if node not in self._monitors:
                placed = NodeAffinitySchedulingStrategy(node, soft=False)
                actor = ray.remote(MachineMonitor).options(num_cpus=0, scheduling_strategy=placed)
                self._monitors[node] = actor.remote()


@contextmanager
def watch_machines(on_metrics: Callable[[dict[str, float]], None]) -> Iterator[None]:
    """During the `with` block, call `on_metrics` in another thread with the system metrics of all
    machines, every MEASURE_SECONDS. An error is logged once and ends nothing."""
    done = threading.Event()

    def watch() -> None:
        machines, is_failing = Machines(), False
        while not done.wait(MEASURE_SECONDS):
            try:
                on_metrics(machines.measure())
                is_failing = False
            except Exception as error:  # Training does not depend on it.
                if not is_failing and not done.is_set():
                    logger.warning("system metrics are missing: %s", one_line(error))
                is_failing = True

    thread = threading.Thread(target=watch, name="system-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(ANSWER_SECONDS)
