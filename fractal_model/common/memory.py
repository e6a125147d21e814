"""Measure the memory that some work takes and the memory that is available; reuse freed memory.

Decided here: on the CPU the peak is the largest resident size of the process, read fifty times a
second. On CUDA it is the most that torch's allocator has in use. On Linux a process that computes
on a CPU keeps freed memory: zeroing new pages would take a fifth of a training step.
"""

import ctypes
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil
import torch

_CGROUP = Path("/sys/fs/cgroup")
_INTERVAL_SECONDS = 0.02
_GLIBC = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # as in malloc.h


@dataclass
class Peak:
    """The result of `peak_memory`: by how many bytes the memory in use grew at most. It is 0 until
    the block ends."""

    added_bytes: int = 0


@cache
def keep_freed_memory(device: torch.device) -> None:
    """If `device` is a CPU, keep freed memory in this process for later tensors, as CUDA's
    allocator does, instead of returning it to the system. Threads that start later share one heap.
    Without the C library glibc nothing changes."""
    if device.type == "cpu" and _GLIBC is not None:
        _GLIBC.mallopt(_M_MMAP_MAX, 0)
        _GLIBC.mallopt(_M_TRIM_THRESHOLD, -1)
        _GLIBC.mallopt(_M_ARENA_MAX, 1)


def return_freed_memory() -> None:
    """Return the pages that `keep_freed_memory` keeps, and that are free, to the system."""
    if _GLIBC is not None:
        _GLIBC.malloc_trim(0)


def available_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`. On a CPU, the limit of a Linux container
    counts too."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + cached
    return_freed_memory()
    free = psutil.virtual_memory().available
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else max(0, min(free, int(limit) - used))


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure by how much the memory in use on `device` grows at most within the block. Yield a
    `Peak`, which has the result after the block."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.added_bytes = torch.cuda.max_memory_allocated(device) - before
        return
    process = psutil.Process()
    return_freed_memory()
    before = highest = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(_INTERVAL_SECONDS):
            highest = max(highest, process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
        peak.added_bytes = max(highest, process.memory_info().rss) - before
