"""The machine is described by what this process may use of it."""

from __future__ import annotations

from dataclasses import replace

import psutil
import pytest

from fractal_model.sizing import machine
from tests.support.sizing import LAPTOP, NODE


def test_this_machine_has_cores_memory_and_speed():
    here = machine.find_machine()
    assert 1 <= here.cores <= psutil.cpu_count()
    assert 0 < here.memory_bytes <= psutil.virtual_memory().total
    assert here.training_speed > 1e8


@pytest.mark.parametrize(
    ("limit", "cores"),
    [("250000 100000", 2), ("50000 100000", 1), ("max 100000", 4), ("900000 100000", 4)],
)
def test_the_limit_of_a_container_counts(monkeypatch, tmp_path, limit, cores):
    (tmp_path / "cpu.max").write_text(f"{limit}\n")
    monkeypatch.setattr(machine, "_CPU_LIMIT", tmp_path / "cpu.max")
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda process: set(range(4)))
    assert machine.count_cores() == cores


def test_a_machine_in_words():
    assert (LAPTOP.words, replace(LAPTOP, cores=1).words) == ("2 cores", "1 core")
    assert NODE.words == "8 × NVIDIA H100 80GB HBM3"
