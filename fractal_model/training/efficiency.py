"""The peak speed of a worker's device, with which the speed of training is compared."""

from typing import Literal

import torch

from fractal_model.common.gpus import gpu_of_driver
from fractal_model.model.kernels.timing import ceiling_gflops

_RUNS = 4
"""Timed products for a measured peak. Few, because they delay the start of a training."""


def peak_gflops(
    device: torch.device, precision: Literal["float32", "bfloat16"], *, local_rank: int = 0
) -> float | None:
    """Return the peak speed of `device` in GFLOP/s, computing in `precision`: the dense peak of a
    known GPU. For an unknown GPU or a CPU, it is the speed of the fastest matrix product, which is
    measured now and takes about two seconds. A CPU is measured by the worker with `local_rank` 0
    alone, because the workers of a machine would disturb each other; the others get None."""
    gpu = gpu_of_driver(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if gpu is not None:
        return gpu.peak(precision) / 1e9
    if device.type == "cpu" and local_rank != 0:
        return None
    return ceiling_gflops(getattr(torch, precision), device, runs=_RUNS)
