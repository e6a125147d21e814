"""How much memory some work takes, and how much there is.

Decided here: on the CPU the peak is the resident size, looked at fifty times a second (large
blocks go back to the system when they are freed, so it follows the tensors); on CUDA it is what
the allocator counted.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

_CGROUP = Path("/sys/fs/cgroup")
_INTERVAL_SECONDS = 0.02


@dataclass
class Peak:
    """Filled in when the block of `peak_memory` ends."""

    added_bytes: int = 0


def compute_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def available_memory(device: torch.device) -> int:
    """Bytes that can still be taken, also within the limit of a Linux container."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + kept
    free = psutil.virtual_memory().available
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else max(0, min(free, int(limit) - used))


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measures what the block takes at its peak beyond what was taken before."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.added_bytes = torch.cuda.max_memory_allocated(device) - before
        return
    process = psutil.Process()
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
