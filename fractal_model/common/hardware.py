"""Which processors and machines a result was made on."""

from __future__ import annotations

import os
import platform

import torch

from fractal_model.common.strict import PositiveInt, StrictModel


class Hardware(StrictModel):
    """Where numbers were computed."""

    machine: str
    """Such as x86_64."""
    cpus: PositiveInt
    """Of all machines."""
    gpus: tuple[str, ...]
    """Type of each, of all machines."""
    workers: PositiveInt

    @classmethod
    def here(cls, workers: int = 1) -> Hardware:
        """This machine."""
        gpus = range(torch.cuda.device_count())
        return cls(
            machine=platform.machine(),
            cpus=os.cpu_count() or 1,
            gpus=tuple(torch.cuda.get_device_name(number) for number in gpus),
            workers=workers,
        )
