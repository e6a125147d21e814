"""Choose who computes the parts of a work: this process or Ray workers.

Decided here: Ray is imported only for several workers, so that this process can compute where Ray
is not installed.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from fractal_model.parallel.parts import MapParts, map_in_this_process


def split_over_workers(workers: int | None, files: Sequence[Path] = ()) -> MapParts:
    """Return a `MapParts` that computes with `workers` Ray workers, or in this process if `workers`
    is None or 1. 0 means as many workers as there is room for. The workers read `files`.
    FractalError: `workers` is below 0, or the cluster does not answer."""
    if workers is None or workers == 1:
        return map_in_this_process
    from fractal_model.parallel.ray_workers import map_over_workers, worker_count

    count = worker_count(workers)
    if count == 1:
        return map_in_this_process
    return partial(map_over_workers, workers=count, files=files)
