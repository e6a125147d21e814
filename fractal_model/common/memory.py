"""Measure the memory that some work takes and the memory that is available; reuse freed memory.

Decided here: on the CPU the peak is the largest resident size, read fifty times a second. On CUDA
it is what torch's allocator counts. On Linux a process that computes on a CPU keeps the memory that
it frees, because filling new pages with zeros takes a fifth of a training step.
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
    """The result of `peak_memory`: the largest growth of the memory in use; 0 until the block
    ends."""

    added_bytes: int = 0


def compute_device() -> torch.device:
    """The current CUDA GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@cache
def keep_freed_memory(device: torch.device) -> None:
    """If `device` is a CPU, let this process keep the memory that it frees, and use it for later
    tensors, as CUDA's allocator does. The system does not get it back. Threads that start later
    share one heap. Without glibc nothing changes."""
    if device.type == "cpu" and _GLIBC is not None:
        _GLIBC.mallopt(_M_MMAP_MAX, 0)
        _GLIBC.mallopt(_M_TRIM_THRESHOLD, -1)
        _GLIBC.mallopt(_M_ARENA_MAX, 1)


def _return_freed_memory() -> None:
    if _GLIBC is not None:
        _GLIBC.malloc_trim(0)


def available_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`. On a CPU, the limit of a Linux container
    counts too."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + cached
    _return_freed_memory()
    free = psutil.virtual_memory().available
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else max(0, min(free, int(limit) - used))


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure the largest growth of the memory in use on `device` within the block, and store it in
    the `Peak` that is yielded."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.added_bytes = torch.cuda.max_memory_allocated(device) - before
        return
    process = psutil.Process()
    _return_freed_memory()
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
