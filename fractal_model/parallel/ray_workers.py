"""Ray's adapter for work on many images: the same parts, on a pool of actors.

Decided here: a worker is an actor with one CPU, and one GPU where the cluster has any, so that it
loads the model once. Ray restarts an actor that died and repeats its part. Every failure arrives as
one FractalError.
"""

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import ray
import torch
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util import ActorPool
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor

from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.hardware import Hardware
from fractal_model.parallel.parts import (
    LARGEST_PART,
    MapParts,
    PartResult,
    PartSizes,
    PartWorker,
    StartWork,
    map_in_this_process,
)
from fractal_model.parallel.ray_cluster import ray_cluster

_ACCELERATOR = "accelerator_type:"
RESTARTS = 2
"""How often each worker is restarted before the whole work is given up."""


def split_over_workers(workers: int | None, files: Sequence[Path] = ()) -> MapParts:
    """Return the `MapParts` that runs on `workers` Ray workers, all of which read `files`.

    None and 1 mean this process, 0 means as many workers as there is room for (`worker_count`).
    FractalError: see there.
    """
    workers = 1 if workers is None else worker_count(workers)
    if workers == 1:
        return map_in_this_process
    return partial(map_over_workers, workers=workers, files=files)


def worker_count(workers: int) -> int:
    """Return `workers`, or for 0 the number that the cluster in RAY_ADDRESS has room for, without a
    cluster one for each GPU of this machine.

    FractalError: it is below 0, or the cluster does not answer.
    """
    if workers < 0:
        raise FractalError(f"{workers} workers asked for: give 1 or more, or 0 for all there are")
    if workers > 0:
        return workers
    if not _has_cluster():
        return max(1, torch.cuda.device_count())
    with ray_cluster(cpus=os.cpu_count() or 1):
        return max(1, _room(*_cpus_and_gpus()))


def hardware(workers: int) -> Hardware:
    """What `workers` workers run on: this machine, or the cluster in RAY_ADDRESS. FractalError: it
    does not answer."""
    here = Hardware.here(workers)
    if workers == 1 or not _has_cluster():
        return here
    with ray_cluster(cpus=os.cpu_count() or 1):
        cpus, _ = _cpus_and_gpus()
        gpus = tuple(
            gpu for node in ray.nodes() if node["Alive"] for gpu in _gpu_types(node["Resources"])
        )
    return here.model_copy(update={"cpus": max(1, cpus), "gpus": gpus})


def map_over_workers(
    start: StartWork,
    total: int,
    *,
    largest: int = LARGEST_PART,
    workers: int,
    files: Sequence[Path] = (),
) -> Iterator[tuple[range, Tensor]]:
    """The `MapParts` on `workers` actors of the cluster in RAY_ADDRESS, else of this machine; they
    read `files`, which are absolute.

    FractalError: more workers than the cluster has CPUs or GPUs, a machine of it that does not see
    a file, or what a worker raised.
    """
    with ray_cluster(cpus=min(workers, os.cpu_count() or 1)), _errors_on_one_line():
        cpus, gpus = _cpus_and_gpus()
        if workers > (room := _room(cpus, gpus)):
            raise FractalError(
                f"the number of workers is {workers}, each takes one CPU"
                f"{' and one GPU' if gpus else ''}: the cluster has room for {room}, "
                f"{f'give 1 … {room} or ' if room else ''}connect to a larger one with RAY_ADDRESS"
            )
        _require_files(files, "GPU" if gpus else "CPU")
        workers = min(workers, total)
        sizes = PartSizes(total, largest=largest, workers=workers)
        # mypy does not apply the decorators of classes.
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
    """`PartWorker` in a process of its own."""

    def __init__(self, sharing: int) -> None:
        self._sharing = sharing
        self._worker: PartWorker | None = None

    def run(self, start: list[ray.ObjectRef], part: range) -> tuple[range, PartResult]:
        """`start` is in a list so that Ray passes the reference on, and the model is read once."""
        if self._worker is None:
            self._worker = PartWorker(ray.get(start[0]), sharing=self._sharing)
        return part, self._worker(part)


@contextmanager
def _errors_on_one_line() -> Iterator[None]:
    """Turn what Ray raises for its workers into a FractalError."""
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
            f"a worker died {RESTARTS + 1} times, out of memory perhaps: give fewer workers "
            f"or a smaller batch size; Ray's logs are in /tmp/ray/session_latest/logs"
        ) from error


def _has_cluster() -> bool:
    return bool(os.environ.get("RAY_ADDRESS")) or ray.is_initialized()


def _cpus_and_gpus() -> tuple[int, int]:
    """How many the connected cluster has."""
    resources = ray.cluster_resources()
    return int(resources.get("CPU", 0)), int(resources.get("GPU", 0))


def _room(cpus: int, gpus: int) -> int:
    """How many workers run at once on so many; Ray would wait for ever for more."""
    return min(cpus, gpus) if gpus else cpus


def _gpu_types(resources: dict[str, float]) -> list[str]:
    """The type of each GPU of a machine, as Ray names it."""
    types = [name for name in resources if name.startswith(_ACCELERATOR)]
    name = types[0].removeprefix(_ACCELERATOR) if types else "GPU"
    return [name] * int(resources.get("GPU", 0))


def _require_files(files: Sequence[Path], resource: str) -> None:
    """FractalError: a machine of the connected cluster that offers `resource` lacks a file."""
    answers = [
        _missing_files.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote([str(file) for file in files])
        for node in ray.nodes()
        if files and node["Alive"] and node["Resources"].get(resource)
    ]
    lacking: list[tuple[str, str]] = []
    for answer in answers:
        with suppress(RayError):  # a machine that is lost meanwhile runs no worker either
            missing = ray.get(answer)
            lacking += missing
    if lacking:
        machine, file = lacking[0]
        others = len(lacking) - 1
        more = f", and {others} more are missing like it" if others else ""
        raise FractalError(
            f"the machine {machine} of the Ray cluster does not see {file}{more}: give all its "
            f"machines the same files at the same paths, on a shared file system for example, or "
            f"unset RAY_ADDRESS to run on this machine alone"
        )


@ray.remote(num_cpus=0, max_retries=0)
def _missing_files(files: list[str]) -> list[tuple[str, str]]:
    """On a machine of the cluster: its name beside each of the files that is not there."""
    return [(socket.gethostname(), file) for file in files if not Path(file).exists()]
