"""Choose who computes the parts of a work: this process or Ray workers.

Decided here: Ray is imported only for several workers or a cluster, so that this process can
compute where Ray is not installed.
"""

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from fractal_model.common.errors import FractalError
from fractal_model.common.hardware import Hardware
from fractal_model.parallel.parts import MapParts, map_in_this_process


def worker_count(workers: int) -> int:
    """Return `workers`. If `workers` is 0, return how many the cluster in RAY_ADDRESS has room for;
    without a cluster, return the number of local GPUs, at least 1. FractalError: `workers` is below
    0, or the cluster does not answer."""
    if workers < 0:
        raise FractalError(
            f"the number of workers is {workers}: give 1 or more, or 0 for as many as fit"
        )
    if workers > 0:
        return workers
    if not _has_cluster():
        return max(1, torch.cuda.device_count())
    from fractal_model.parallel.ray_workers import room_for_workers

    return room_for_workers()


def hardware(workers: int) -> Hardware:
    """Hardware on which `workers` workers compute: this machine, or for several workers the cluster
    in RAY_ADDRESS if there is one. FractalError: the cluster does not answer."""
    if workers == 1 or not _has_cluster():
        return Hardware.here(workers)
    from fractal_model.parallel.ray_workers import cluster_hardware

    return cluster_hardware(workers)


def split_over_workers(workers: int | None, files: Sequence[Path] = ()) -> MapParts:
    """Return a `MapParts` that computes with `workers` Ray workers, or in this process if `workers`
    is None or 1. 0 means as many workers as there is room for. The workers read `files`.
    FractalError: `workers` is below 0, or the cluster does not answer."""
    count = 1 if workers is None else worker_count(workers)
    if count == 1:
        return map_in_this_process
    from fractal_model.parallel.ray_workers import map_over_workers

    return partial(map_over_workers, workers=count, files=files)


def _has_cluster() -> bool:
    """True if RAY_ADDRESS names a cluster, or if this process is connected to one."""
    ray = sys.modules.get("ray")
    return bool(os.environ.get("RAY_ADDRESS")) or (ray is not None and ray.is_initialized())
