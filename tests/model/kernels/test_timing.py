"""The ceiling of matrix products, and the memory that measuring it leaves behind."""

from __future__ import annotations

import platform
import subprocess
import sys
import time

import pytest
import torch

from fractal_model.model.kernels import timing

MEASURE = """
import psutil, torch
from fractal_model.common.memory import keep_freed_memory
from fractal_model.model.kernels.timing import ceiling_gflops

def private_memory():
    return psutil.Process().memory_full_info().uss

cpu = torch.device("cpu")
keep_freed_memory(cpu)
torch.randn(64, 64) @ torch.randn(64, 64)
before = private_memory()
ceiling = ceiling_gflops(torch.float32, cpu, runs=1)
print(ceiling, private_memory() - before)
"""
MATRIX_BYTES = 4 * 2048**2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed memory")
def test_measuring_the_ceiling_leaves_none_of_its_matrices_in_memory():
    process = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, timeout=120, check=True
    )
    ceiling, added_bytes = map(float, process.stdout.split())
    assert ceiling > 0
    assert added_bytes < MATRIX_BYTES


@pytest.mark.parametrize(("slow", "side"), [(False, 2048), (True, 512)])
def test_a_slow_product_is_measured_with_smaller_matrices(monkeypatch, slow, side):
    sides = []

    def product_seconds(dtype, device, length, runs):
        sides.append(length)
        time.sleep(0.5 if slow else 0)
        return 1e-3

    monkeypatch.setattr(timing, "_product_seconds", product_seconds)
    ceiling = timing.ceiling_gflops(torch.bfloat16, torch.device("cpu"))
    assert sides == [512, side]
    assert ceiling == pytest.approx(2 * side**3 / 1e-3 / 1e9)
