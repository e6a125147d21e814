"""What this machine offers to a training: cores, memory, GPUs, and their speed.

Decided here: the speed of a training is first a share of the peak. On a GPU the share is the one
that the paper's times imply; on a CPU it is what small models reach. A trial step replaces it.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from fractal_model.common.gpus import gpu_of_driver
from fractal_model.common.memory import available_memory
from fractal_model.costs.published_costs import TRAINING_UTILISATION
from fractal_model.model.kernels.timing import ceiling_gflops

Precision = Literal["float32", "bfloat16"]
CPU_UTILISATION = 0.25
"""Share of the fastest matrix product's speed that a training of a small model reaches on a CPU."""
_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
_CEILING_RUNS = 2


@dataclass(frozen=True)
class Machine:
    """This machine, as far as it decides a recipe."""

    cores: int
    memory_bytes: float
    """Memory that is free: of one GPU, or of the machine if it has no GPU."""
    gpus: int
    gpu_name: str
    precision: Precision
    """bfloat16 if the GPU multiplies it in its tensor cores, else float32."""
    training_speed: float
    """Operations per second that a training on the whole machine is expected to reach."""

    @property
    def words(self) -> str:
        """Short description, such as `2 cores` or `4 × NVIDIA H100`."""
        if self.gpus:
            return self.gpu_name if self.gpus == 1 else f"{self.gpus} × {self.gpu_name}"
        return "1 core" if self.cores == 1 else f"{self.cores} cores"


def find_machine() -> Machine:
    """Return this machine. It takes seconds, because the speed of a CPU is measured."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = torch.device("cuda" if gpus else "cpu")
    name = torch.cuda.get_device_name() if gpus else ""
    is_ampere = gpus > 0 and torch.cuda.get_device_capability() >= (8, 0)
    precision: Precision = "bfloat16" if is_ampere else "float32"
    return Machine(
        cores=count_cores(),
        memory_bytes=available_memory(device),
        gpus=gpus,
        gpu_name=name,
        precision=precision,
        training_speed=_speed(device, name, precision, gpus),
    )


def count_cores() -> int:
    """Number of CPUs that this process may use; the limit of a Linux container counts too."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = _CPU_LIMIT.read_text().split()
        return max(1, min(cores, math.floor(int(quota) / int(period))))
    except (OSError, ValueError):  # no container, or no limit ("max")
        return cores


def _speed(device: torch.device, name: str, precision: Precision, gpus: int) -> float:
    known = gpu_of_driver(name)
    if known is not None:
        return gpus * known.peak(precision) * TRAINING_UTILISATION
    threads = torch.get_num_threads()
    torch.set_num_threads(count_cores())
    try:
        peak = 1e9 * ceiling_gflops(getattr(torch, precision), device, _CEILING_RUNS)
    finally:
        torch.set_num_threads(threads)
    return peak * (gpus * TRAINING_UTILISATION if gpus else CPU_UTILISATION)
