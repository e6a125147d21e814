"""Ray's adapter for work on many images: the same parts, on a pool of actors.

Decided here: a worker is an actor with one CPU, and one GPU where the cluster has any, so that it
holds the model once; Ray starts one that died again and repeats its part. Whatever goes wrong
arrives as one FractalError.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

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
    in_this_process,
)
from fractal_model.parallel.ray_cluster import ray_cluster

_ACCELERATOR = "accelerator_type:"
RESTARTS = 2
"""Of each worker, before the whole work is given up."""


def map_over_workers(
    start: StartWork,
    total: int,
    *,
    largest: int = LARGEST_PART,
    workers: int,
    files: Sequence[Path] = (),
) -> Iterator[tuple[range, Tensor]]:
    """The `MapParts` on `workers` actors of the cluster in RAY_ADDRESS, else of this machine; they
    read `files`.

    FractalError: more workers than the cluster has CPUs or GPUs, a machine of it that does not see
    a file, or what a worker raised.
    """
    if workers < 1:
        raise FractalError(f"{workers} workers asked for: give 1 or more")
    with ray_cluster(cpus=min(workers, os.cpu_count() or 1)):
        gpus = _require_resources(workers)
        require_files(files, "GPU" if gpus else "CPU")
        workers = min(workers, total)
        try:
            yield from _run(
                start, PartSizes(total, largest=largest, workers=workers), workers, gpus
            )
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, FractalError):
                raise FractalError(one_line(cause)) from error
            raise FractalError(
                f"a worker failed: {type(cause).__name__}: {one_line(cause)}"
            ) from error
        except RayActorError as error:
            raise FractalError(
                f"a worker died {RESTARTS + 1} times, out of memory perhaps: give fewer workers "
                f"or a smaller batch size; Ray's logs are in /tmp/ray/session_latest/logs"
            ) from error


def split_over_workers(workers: int | None, files: Sequence[Path] = ()) -> MapParts:
    """Return the `MapParts` that runs on `workers` Ray workers, all of which read `files`.

    None and 1 mean this process, 0 means as many workers as there is room for (`worker_count`).
    FractalError: see there.
    """
    workers = 1 if workers is None else worker_count(workers)
    if workers == 1:
        return in_this_process
    return partial(map_over_workers, workers=workers, files=files)


def worker_count(workers: int) -> int:
    """How many workers that is: 0 stands for as many as the cluster in RAY_ADDRESS has room for, or
    one for each GPU of this machine. FractalError: fewer than 0, or the cluster does not answer."""
    if workers < 0:
        raise FractalError(f"{workers} workers asked for: give 1 or more, or 0 for all there are")
    if workers > 0:
        return workers
    if not _has_cluster():
        return max(1, torch.cuda.device_count())
    with ray_cluster(cpus=os.cpu_count() or 1):
        found = ray.cluster_resources()
    return max(1, int(found.get("GPU", 0)) or int(found.get("CPU", 0)))


def hardware(workers: int) -> Hardware:
    """What `workers` workers run on: this machine, or the cluster in RAY_ADDRESS. FractalError: it
    does not answer."""
    here = Hardware.here(workers)
    if workers == 1 or not _has_cluster():
        return here
    with ray_cluster(cpus=os.cpu_count() or 1):
        found = ray.cluster_resources()
        gpus = tuple(name for node in ray.nodes() if node["Alive"] for name in _gpus(node))
    return here.model_copy(update={"cpus": max(1, int(found.get("CPU", 0))), "gpus": gpus})


def _gpus(node: dict[str, Any]) -> list[str]:
    """Type of each GPU of a machine, as Ray names it."""
    resources = node["Resources"]
    types = [name for name in resources if name.startswith(_ACCELERATOR)]
    name = types[0].removeprefix(_ACCELERATOR) if types else "GPU"
    return [name] * int(resources.get("GPU", 0))


def _has_cluster() -> bool:
    return bool(os.environ.get("RAY_ADDRESS")) or ray.is_initialized()


def _run(
    start: StartWork, sizes: PartSizes, workers: int, gpus: int
) -> Iterator[tuple[range, Tensor]]:
    shared = ray.put(start)
    options = {"num_cpus": 1, "num_gpus": gpus, "max_restarts": RESTARTS}
    actor = _Worker.options(max_task_retries=RESTARTS, **options)
    pool = ActorPool([actor.remote(workers) for _ in range(workers)])
    part = sizes.next_part()
    while part is not None or pool.has_next():
        while part is not None and pool.has_free():
            pool.submit(lambda worker, value: worker.run.remote([shared], value), part)
            part = sizes.next_part()
        done, result = pool.get_next_unordered()
        sizes.record(done, result)
        yield done, result.rows


@ray.remote
class _Worker:
    """`PartWorker` in a process of its own."""

    def __init__(self, sharing: int) -> None:
        self._sharing = sharing
        self._worker: PartWorker | None = None

    def run(self, start: list[ray.ObjectRef], part: range) -> tuple[range, PartResult]:
        """`start` in a list: so Ray hands on the reference, and the model is read once."""
        if self._worker is None:
            self._worker = PartWorker(ray.get(start[0]), sharing=self._sharing)
        return part, self._worker(part)


def _require_resources(workers: int) -> int:
    """GPUs that a worker takes. FractalError where Ray would wait for ever."""
    found = ray.cluster_resources()
    gpus, cpus = int(found.get("GPU", 0)), int(found.get("CPU", 0))
    count = min(cpus, gpus) if gpus else cpus
    if workers > count:
        raise FractalError(
            f"{workers} workers asked for, each takes one CPU{' and one GPU' if gpus else ''}: the "
            f"cluster has room for {count}, ask for 1 … {count} or connect to a larger one "
            f"with RAY_ADDRESS"
        )
    return 1 if gpus else 0


def require_files(files: Sequence[Path], resource: str) -> None:
    """`files` are absolute; asked are machines that offer the resource, CPU or GPU, of the cluster
    that is connected. FractalError: one of them lacks a file."""
    nodes = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get(resource)]
    asked = [_missing_on(node["NodeID"], files) for node in nodes if files]
    lacking: list[tuple[str, str]] = []
    for answer in asked:
        try:
            machine, missing = ray.get(answer)
        except RayError:
            continue  # a machine that is lost meanwhile runs no worker either
        lacking += [(machine, file) for file in missing]
    if lacking:
        machine, file = lacking[0]
        others = len(lacking) - 1
        more = f", and {others} more are missing like it" if others else ""
        raise FractalError(
            f"the machine {machine} of the Ray cluster does not see {file}{more}: give all its "
            f"machines the same files at the same paths, on a shared file system for example, or "
            f"unset RAY_ADDRESS to run on this machine alone"
        )


def _missing_on(node: str, files: Sequence[Path]) -> ray.ObjectRef:
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return _missing.options(scheduling_strategy=there).remote([str(file) for file in files])


@ray.remote(num_cpus=0, max_retries=0)
def _missing(files: list[str]) -> tuple[str, list[str]]:
    """On a machine of the cluster: its name, and which of the files are not there."""
    return socket.gethostname(), [file for file in files if not Path(file).exists()]
