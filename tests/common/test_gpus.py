"""GPUs by the name that NVIDIA's driver gives to them."""

from __future__ import annotations

import pytest

from fractal_model.common.gpus import GPUS, gpu_of_driver


@pytest.mark.parametrize(
    ("driver_name", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA A100 80GB PCIe", "a100-80"),
        ("A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100-PCIE-40GB", "a100-40"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
    ],
)
def test_a_known_gpu_is_found(driver_name, name):
    assert gpu_of_driver(driver_name) is GPUS[name]


@pytest.mark.parametrize(
    "driver_name",
    [
        "NVIDIA H100 NVL",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA L40",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "Tesla T4",
        "",
    ],
)
def test_a_similar_name_is_not_taken_for_a_known_gpu(driver_name):
    assert gpu_of_driver(driver_name) is None
