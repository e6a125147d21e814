"""Peak speed, memory and its bandwidth of GPUs, as their makers state them.

Decided here: peaks are dense (without structured sparsity). For bfloat16, products are summed in
float32. For float32, TensorFloat-32 is off, as with `precision: float32`. Memory is in decimal
gigabytes, as sold.

Sources: NVIDIA's data sheets of the H100 (SXM and PCIe, 2023), H200 (2024), HGX B200 (2025), A100
(2021; the 80 GB on a PCIe card has 1.935 TB/s), L40S (2023) and L4 (2023), where a figure "with
sparsity" is halved; the GeForce RTX 4090 from appendix A of NVIDIA's Ada architecture paper.
"""

import re
from typing import Literal

from fractal_model.common.errors import FractalError
from fractal_model.common.strict import StrictModel


class Gpu(StrictModel):
    """One kind of GPU."""

    name: str
    bfloat16_tflops: float
    float32_tflops: float
    memory_gb: float
    bandwidth_tbs: float
    """Bandwidth of the memory in terabytes per second."""

    @property
    def bandwidth(self) -> float:
        """Bandwidth of the memory in bytes per second."""
        return self.bandwidth_tbs * 1e12

    def peak(self, precision: Literal["float32", "bfloat16"]) -> float:
        """Return the peak speed of the GPU in operations per second, computing in `precision`."""
        teraflops = self.bfloat16_tflops if precision == "bfloat16" else self.float32_tflops
        return teraflops * 1e12


GPUS = {
    name: Gpu(
        name=name,
        bfloat16_tflops=bf16,
        float32_tflops=fp32,
        memory_gb=memory,
        bandwidth_tbs=bandwidth,
    )
    for name, bf16, fp32, memory, bandwidth in (  # in TFLOP/s, GB and TB/s
        ("h100", 989.4, 66.9, 80, 3.35),
        ("h100-pcie", 756.0, 51.2, 80, 2.0),
        ("h200", 989.4, 66.9, 141, 4.8),
        ("b200", 2250.0, 75.0, 180, 7.7),
        ("a100-80", 312.0, 19.5, 80, 2.039),
        ("a100-40", 312.0, 19.5, 40, 1.555),
        ("l40s", 362.0, 91.6, 48, 0.864),
        ("l4", 121.0, 30.3, 24, 0.3),
        ("rtx-4090", 165.2, 82.6, 24, 1.008),
    )
}
_DRIVER_NAMES = {
    "h100": "NVIDIA H100 80GB HBM3",
    "h100-pcie": "NVIDIA H100 PCIe",
    "h200": "NVIDIA H200",
    "b200": "NVIDIA B200",
    "a100-80": "NVIDIA A100-SXM4-80GB|NVIDIA A100 80GB PCIe",
    "a100-40": "(NVIDIA )?A100-(SXM4|PCIE)-40GB",
    "l40s": "NVIDIA L40S",
    "l4": "NVIDIA L4",
    "rtx-4090": "NVIDIA GeForce RTX 4090",
}
"""For each GPU, a regular expression of the whole name that NVIDIA's driver gives to it."""


def find_gpu(name: str) -> Gpu:
    """Return the GPU of that name. FractalError: it is unknown."""
    if name not in GPUS:
        raise FractalError(f"GPU {name!r} is unknown: choose {', '.join(GPUS)}")
    return GPUS[name]


def gpu_of_driver(driver_name: str) -> Gpu | None:
    """Return the GPU that NVIDIA's driver calls `driver_name`. None: it is unknown, or only a slice
    of a GPU (MIG), whose peak is lower."""
    matches = (n for n, pattern in _DRIVER_NAMES.items() if re.fullmatch(pattern, driver_name))
    name = next(matches, None)
    return None if name is None else GPUS[name]
