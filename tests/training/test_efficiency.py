"""The peak of a worker's device: from the table of GPUs, or measured."""

from __future__ import annotations

import pytest
import torch

from fractal_model.training import efficiency
from fractal_model.training.efficiency import peak_gflops

GPU = torch.device("cuda", 0)


@pytest.fixture
def measured(monkeypatch) -> list[torch.dtype]:
    """Number formats for which a ceiling was measured; the measurement gives 123 GFLOP/s."""
    dtypes: list[torch.dtype] = []

    def ceiling_gflops(dtype, device, runs):
        dtypes.append(dtype)
        return 123.0

    monkeypatch.setattr(efficiency, "ceiling_gflops", ceiling_gflops)
    return dtypes


@pytest.mark.parametrize(("precision", "expected"), [("bfloat16", 989_400), ("float32", 66_900)])
def test_a_known_gpu_has_the_peak_of_its_maker(monkeypatch, measured, precision, expected):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert peak_gflops(GPU, precision) == pytest.approx(expected)
    assert measured == []


def test_the_peak_of_an_unknown_gpu_is_measured(monkeypatch, measured):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    assert peak_gflops(GPU, "bfloat16") == 123.0
    assert measured == [torch.bfloat16]


def test_the_peak_of_a_cpu_is_measured(measured):
    assert peak_gflops(torch.device("cpu"), "float32") == 123.0
    assert measured == [torch.float32]


def test_only_the_first_worker_of_a_machine_measures_its_cpu(measured):
    assert peak_gflops(torch.device("cpu"), "float32", local_rank=1) is None
    assert measured == []
