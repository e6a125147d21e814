"""Measure the median time of some runs, and the ceiling: the speed of the fastest matrix product.

Decided here: the ceiling is measured in the same process as the values that are compared with it,
because clock speeds and other load change from minute to minute.
"""

import math
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from fractal_model.common.memory import return_freed_memory
from fractal_model.model.kernels.linear import linear

CEILING_SIZE = {"cpu": 2048, "cuda": 8192}
"""Side of the square matrices, by device: so large that the start of a product hardly counts."""
_CEILING_RUNS = 7
_SMALLER = 4
"""Divisor of the side where `_TRIAL_RUNS` full products of each kind would take more than
`_LONGEST_TRIAL` seconds, such as those in bfloat16 on a CPU without instructions for it."""
_TRIAL_RUNS, _LONGEST_TRIAL = 3, 20.0


def median_seconds(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Return the median seconds of `repeats` runs of `work`, without a warm-up run before them."""
    return statistics.median(_seconds(work, device) for _ in range(repeats))


def ceiling_gflops(dtype: torch.dtype, device: torch.device, runs: int = _CEILING_RUNS) -> float:
    """Return the GFLOP/s of a product of two matrices, by torch or our `linear`: the faster one.
    `runs`: number of timed products of each."""
    side = CEILING_SIZE.get(device.type, CEILING_SIZE["cpu"])
    smaller = side // _SMALLER
    start = time.perf_counter()
    _product_seconds(dtype, device, smaller, _TRIAL_RUNS)
    if (time.perf_counter() - start) * _SMALLER**3 > _LONGEST_TRIAL:
        side = smaller
    seconds = _product_seconds(dtype, device, side, runs)
    return_freed_memory()  # A small training takes less than these matrices.
    return 2 * side**3 / seconds / 1e9


def _product_seconds(dtype: torch.dtype, device: torch.device, side: int, runs: int) -> float:
    left, right = torch.randn(2, side, side, device=device).to(dtype)
    best = math.inf
    with torch.no_grad():
        for product in (torch.matmul, linear):
            work = partial(product, left, right)
            work()
            best = min(best, *(_seconds(work, device) for _ in range(runs)))
    return best


def wait(device: torch.device) -> None:
    """Wait until the device has completed all work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start
