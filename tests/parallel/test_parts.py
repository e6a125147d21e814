"""Work in parts adapts to time and memory, and memory is measured."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from fractal_model.common import memory
from fractal_model.common.errors import FractalError
from fractal_model.common.memory import available_memory, peak_memory
from fractal_model.parallel.parts import (
    PartResult,
    PartSizes,
    PartWorker,
    map_in_this_process,
    run_halving,
)

CPU = torch.device("cpu")
CHECK_KEPT_MEMORY = """
from concurrent.futures import ThreadPoolExecutor
import numpy as np, psutil, torch
from fractal_model.common.memory import available_memory, keep_freed_memory

def check():
    resident = psutil.Process().memory_info
    before = resident().rss
    np.ones(200 * 2**20, dtype=np.uint8)  # a tensor would allocate more behind its numbers
    assert resident().rss > before + 150 * 2**20
    available_memory(torch.device("cpu"))
    assert resident().rss < before + 50 * 2**20

keep_freed_memory(torch.device("cpu"))
check()
ThreadPoolExecutor().submit(check).result()
"""


def numbers(part):
    return torch.tensor(list(part))


def result(part, *, fitting=10**6, seconds=0.01):
    return PartResult(numbers(part), fitting, seconds)


def part_lengths(total, *, largest=1024, workers=1, **record):
    sizes, lengths = PartSizes(total, largest=largest, workers=workers), []
    seconds = record.pop("seconds", lambda images: 0.01)
    while (part := sizes.next_part()) is not None:
        lengths.append(len(part))
        sizes.record(part, result(part, seconds=seconds(len(part)), **record))
    return lengths


def test_parts_grow_up_to_the_largest():
    assert part_lengths(3000) == [1, 8, 64, 512, 1024, 1024, 367]
    assert part_lengths(20, largest=8) == [1, 8, 8, 3]
    assert part_lengths(3, largest=1) == [1, 1, 1]


def test_parts_fit_the_memory_that_was_measured():
    assert part_lengths(30, fitting=6) == [1, 6, 6, 6, 6, 5]
    assert part_lengths(3, fitting=1) == [1, 1, 1]


def test_slow_parts_do_not_grow():
    assert part_lengths(12, seconds=lambda images: 15.0 * images) == [1, 4, 4, 3]


def test_slow_parts_grow_to_a_minute_while_an_image_takes_less_time_in_larger_ones():
    lengths = part_lengths(300, seconds=lambda images: 25.0 + 0.5 * images)
    assert lengths == [1, 4, 8, 16, 29, 44, 56, 56, 56, 30]
    assert part_lengths(300, largest=20, seconds=lambda images: 25.0)[:6] == [1, 4, 8, 16, 20, 20]


def test_a_slow_first_image_lets_parts_grow_once():
    lengths = part_lengths(60, seconds=lambda images: 5.0 * images + 100 * (images == 1))
    assert lengths == [1, 4, 8, 8, 8, 8, 8, 8, 7]


def test_workers_get_even_parts():
    assert part_lengths(7, workers=3) == [1, 2, 2, 1, 1]


def test_this_process_computes_every_image_once():
    parts = list(map_in_this_process(lambda device: numbers, 300))
    assert [int(n) for part, rows in parts for n in rows] == list(range(300))
    assert all(rows.tolist() == list(part) for part, rows in parts)


def test_a_part_that_does_not_fit_is_halved():
    tried = []

    def work(part):
        tried.append(len(part))
        if len(part) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return numbers(part)

    rows, fitted = run_halving(work, range(10, 20))
    assert rows.tolist() == list(range(10, 20))
    assert fitted == 3
    assert tried == [10, 5, 3, 3, 3, 1]
    assert PartWorker(lambda device: work)(range(10)).fitting <= 3


def test_a_tensor_larger_than_memory_is_out_of_memory():
    """Torch raises another error on the CPU than on a GPU."""

    def work(part):
        if len(part) > 1:
            torch.empty(2**60, dtype=torch.uint8)
        return numbers(part)

    assert run_halving(work, range(4))[0].tolist() == [0, 1, 2, 3]


def test_one_image_that_does_not_fit_is_an_error():
    def work(part):
        raise MemoryError

    with pytest.raises(FractalError, match="one image alone does not fit"):
        run_halving(work, range(4))


def test_other_errors_are_not_swallowed():
    def work(part):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        run_halving(work, range(4))


def test_peak_memory_includes_memory_that_was_freed_again():
    with peak_memory(CPU) as peak:
        block = torch.ones(200 * 2**20, dtype=torch.uint8)
        for _ in range(10):
            block.add_(1)
        del block
    assert 150 * 2**20 < peak.added_bytes < 400 * 2**20


@pytest.mark.skipif(memory._GLIBC is None, reason="the allocator is not glibc's")
def test_freed_memory_is_kept_until_the_available_memory_is_read():
    """Another process checks this, because after a failed allocation glibc takes another heap."""
    environment = {name: os.environ[name] for name in os.environ if name != "MALLOC_ARENA_MAX"}
    command = [sys.executable, "-c", CHECK_KEPT_MEMORY]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_available_memory_respects_a_containers_limit(monkeypatch, tmp_path):
    (tmp_path / "memory.max").write_text(f"{50 * 2**20}\n")
    (tmp_path / "memory.current").write_text(f"{40 * 2**20}\n")
    monkeypatch.setattr("fractal_model.common.memory._CGROUP", tmp_path)
    assert available_memory(CPU) == 10 * 2**20
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory(CPU) > 10 * 2**20
