"""The processors and machines on which a result was computed."""

import os
import platform
from typing import Self

import torch

from fractal_model.common.strict import PositiveInt, StrictModel


class Hardware(StrictModel):
    """The hardware that computed one result."""

    machine: str
    """Processor architecture, such as x86_64."""
    cpus: PositiveInt
    """Number of CPUs of all machines together."""
    gpus: tuple[str, ...]
    """Type of each GPU on all machines, such as NVIDIA H100."""
    workers: PositiveInt

    @classmethod
    def here(cls, workers: int = 1) -> Self:
        """The hardware of this machine, for a result that `workers` processes compute."""
        return cls(
            machine=platform.machine(),
            cpus=os.cpu_count() or 1,
            gpus=tuple(torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())),
            workers=workers,
        )
