"""Compute parts of work on many images with Ray workers.

Decided here: a worker is a Ray actor, so that it loads the model only once. It has one CPU and, if
the cluster has GPUs, one GPU. Ray restarts a dead actor and repeats its part, at most `RESTARTS`
times. After that, or if a part raises an error, the caller gets a FractalError.
"""

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util import ActorPool
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor

from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.hardware import Hardware
from fractal_model.parallel.parts import (
    LARGEST_PART,
    PartResult,
    PartSizes,
    PartWorker,
    StartWork,
)
from fractal_model.parallel.ray_cluster import ray_cluster

_ACCELERATOR = "accelerator_type:"
RESTARTS = 2
"""Number of times that Ray restarts a dead worker before the command fails."""


def room_for_workers() -> int:
    """Number of workers that the Ray cluster has room for, at least 1. FractalError: it does not
    answer."""
    with ray_cluster(cpus=os.cpu_count() or 1):
        return max(1, _workers_that_fit(*_cpus_and_gpus()))


def cluster_hardware(workers: int) -> Hardware:
    """Hardware of the Ray cluster, on which `workers` workers compute. FractalError: it does not
    answer."""
    with ray_cluster(cpus=os.cpu_count() or 1):
        cpus, _ = _cpus_and_gpus()
        gpus = tuple(
            gpu for node in ray.nodes() if node["Alive"] for gpu in _gpu_types(node["Resources"])
        )
    return Hardware.here(workers).model_copy(update={"cpus": max(1, cpus), "gpus": gpus})


def map_over_workers(
    start: StartWork,
    total: int,
    *,
    largest: int = LARGEST_PART,
    workers: int,
    files: Sequence[Path] = (),
) -> Iterator[tuple[range, Tensor]]:
    """Compute all parts with `workers` Ray workers on the cluster in RAY_ADDRESS, or else on this
    machine, as a `MapParts`. The workers read `files`, absolute paths. FractalError: there are more
    workers than CPUs or GPUs, a machine does not see one of `files`, or a worker failed."""
    with ray_cluster(cpus=min(workers, os.cpu_count() or 1)), _errors_on_one_line():
        cpus, gpus = _cpus_and_gpus()
        if workers > (room := _workers_that_fit(cpus, gpus)):
            raise FractalError(
                f"the number of workers is {workers}, but the cluster has room for {room}, because "
                f"each takes one CPU{' and one GPU' if gpus else ''}: "
                f"{f'give 1 … {room} or ' if room else ''}name a larger cluster in RAY_ADDRESS"
            )
        _require_files(files, "GPU" if gpus else "CPU")
        workers = min(workers, total)
        sizes = PartSizes(total, largest=largest, workers=workers)
        # mypy ignores the decorators of classes.
        actor = _Worker.options(num_gpus=min(1, gpus))  # type: ignore[attr-defined]
        pool = ActorPool([actor.remote(workers) for _ in range(workers)])
        shared, part = ray.put(start), sizes.next_part()
        while part is not None or pool.has_next():
            while part is not None and pool.has_free():
                pool.submit(lambda worker, value: worker.run.remote([shared], value), part)
                part = sizes.next_part()
            done, result = pool.get_next_unordered()
            sizes.record(done, result)
            yield done, result.rows


@ray.remote(num_cpus=1, max_restarts=RESTARTS, max_task_retries=RESTARTS)
class _Worker:
    """Ray actor that computes parts with a `PartWorker` in its process."""

    def __init__(self, sharing: int) -> None:
        self._sharing = sharing
        self._worker: PartWorker | None = None

    def run(self, start: list[ray.ObjectRef], part: range) -> tuple[range, PartResult]:
        """Compute a part; return its image numbers and its result. `start` is a list with one
        reference to the `StartWork`, which has the model. The list hides the reference from Ray.
        Otherwise Ray would load the model in every call."""
        if self._worker is None:
            self._worker = PartWorker(ray.get(start[0]), sharing=self._sharing)
        return part, self._worker(part)


@contextmanager
def _errors_on_one_line() -> Iterator[None]:
    """Turn an error of Ray or of a worker within the `with` block into a FractalError."""
    try:
        yield
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, FractalError):
            raise FractalError(one_line(cause)) from error
        message = f"a worker failed: {type(cause).__name__}: {one_line(cause)}"
        raise FractalError(message) from error
    except RayActorError as error:
        raise FractalError(
            f"a worker died {RESTARTS + 1} times, perhaps because memory ran out: give fewer "
            f"workers or a smaller batch size, or read the logs in /tmp/ray/session_latest/logs"
        ) from error


def _cpus_and_gpus() -> tuple[int, int]:
    """Number of CPUs and of GPUs of the connected cluster."""
    resources = ray.cluster_resources()
    return int(resources.get("CPU", 0)), int(resources.get("GPU", 0))


def _workers_that_fit(cpus: int, gpus: int) -> int:
    """Number of workers that `cpus` CPUs and `gpus` GPUs are enough for. If one more were started,
    Ray would wait for ever."""
    return min(cpus, gpus) if gpus else cpus


def _gpu_types(resources: dict[str, float]) -> list[str]:
    """Type of each GPU of a machine, such as H100, read from Ray's `resources` of the machine."""
    types = [name for name in resources if name.startswith(_ACCELERATOR)]
    name = types[0].removeprefix(_ACCELERATOR) if types else "GPU"
    return [name] * int(resources.get("GPU", 0))


def _require_files(files: Sequence[Path], resource: str) -> None:
    """Raise FractalError if one of `files` is missing on a machine that can run workers: a machine
    that has the `resource`, CPU or GPU."""
    answers = [
        _missing_files.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote([str(file) for file in files])
        for node in ray.nodes()
        if files and node["Alive"] and node["Resources"].get(resource)
    ]
    missing: list[tuple[str, str]] = []
    for answer in answers:
        with suppress(RayError):  # A machine that is lost meanwhile runs no worker either.
            pairs = ray.get(answer)
            missing += pairs
    if missing:
        machine, file = missing[0]
        others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise FractalError(
            f"the machine {machine} of the Ray cluster does not see {file}{others}: give all its "
            f"machines the same files at the same paths, on a shared file system for example, or "
            f"unset RAY_ADDRESS to run on this machine alone"
        )


@ray.remote(num_cpus=0, max_retries=0)
def _missing_files(files: list[str]) -> list[tuple[str, str]]:
    """Return (machine's name, file) for each of `files` that this task's machine does not see."""
    return [(socket.gethostname(), file) for file in files if not Path(file).exists()]
