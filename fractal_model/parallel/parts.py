"""Work on many images, cut into parts that fit memory.

Decided here: how the work is cut does not change its result, because every image has its own random
numbers. Parts start small. They grow as far as the memory measured on earlier parts allows, and as
long as one part does not take so long that progress stands still. A part that does not fit after
all is halved. The caller chooses who runs the parts, this process or workers: see `MapParts`.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fractal_model.common.errors import FractalError
from fractal_model.common.memory import available_memory, compute_device, peak_memory

FIRST_PART, GROWTH = 1, 8
"""One image first: its memory is not known yet, and where the system does not refuse an allocation
it kills the process."""
LARGEST_PART = 1024
TARGET_SECONDS = 5.0
ALWAYS_FAST_ENOUGH = 4
"""Images that a part may have however slow they are: one at a time wastes the machine."""
MEMORY_SHARE = 0.5
"""Share of the free memory that a part may take: it was measured on smaller parts."""

Work = Callable[[range], Tensor]
"""From image numbers to a tensor with one row for each."""
StartWork = Callable[[torch.device], Work]
"""Called once by each worker: brings the model to its device. Must pickle."""


class MapParts(Protocol):
    """Runs the work on images 0 … total − 1; yields parts as they are done, in any order."""

    def __call__(
        self, start: StartWork, total: int, *, largest: int
    ) -> Iterator[tuple[range, Tensor]]: ...


@dataclass(frozen=True)
class PartResult:
    """What a worker returns for a part."""

    rows: Tensor
    """On the CPU, one for each image."""
    fitting: int
    """Images of a part that would fit where this one ran."""
    seconds: float


class PartWorker:
    """Runs parts on one device, which it shares with other workers: `sharing` of them in all."""

    def __init__(self, start: StartWork, *, sharing: int = 1) -> None:
        self._device = compute_device()
        self._share = MEMORY_SHARE / (sharing if self._device.type == "cpu" else 1)
        self._work = start(self._device)

    def __call__(self, part: range) -> PartResult:
        started = time.monotonic()
        with peak_memory(self._device) as peak:
            rows, fitted = run_halving(self._work, part)
        seconds = time.monotonic() - started
        per_image = max(1, peak.added_bytes // fitted)
        fitting = max(1, int(self._share * available_memory(self._device)) // per_image)
        return PartResult(rows, fitting if fitted == len(part) else min(fitting, fitted), seconds)


def run_halving(work: Work, part: range) -> tuple[Tensor, int]:
    """The rows of a part, and how many images fitted at a time. FractalError: not even one."""
    size, rows, at = len(part), [], 0
    while at < len(part):
        try:
            rows.append(work(part[at : at + size]).cpu())
            at += size
            continue
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if size == 1:
                raise FractalError(
                    "one image alone does not fit the memory: choose a smaller model, or a "
                    "machine with more"
                ) from error
        # Outside the handler, whose traceback keeps the tensors alive.
        size = (size + 1) // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return torch.cat(rows), size


def is_out_of_memory(error: BaseException) -> bool:
    # Torch's allocator on the CPU raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "can't allocate memory" in str(error)
    )


class PartSizes:
    """Hands out parts of images 0 … total − 1, each as large as those before it allow."""

    def __init__(self, total: int, *, largest: int, workers: int = 1) -> None:
        self._total = total
        self._workers = workers
        self._at = 0
        self._largest = largest
        self._size = min(FIRST_PART, largest)

    def next_part(self) -> range | None:
        if self._at == self._total:
            return None
        even = -(-(self._total - self._at) // self._workers)  # the last parts end together
        part = range(self._at, self._at + min(self._size, even))
        self._at = part.stop
        return part

    def record(self, part: range, result: PartResult) -> None:
        in_time = int(len(part) * TARGET_SECONDS / max(result.seconds, 1e-3))
        in_time = max(in_time, len(part), ALWAYS_FAST_ENOUGH)
        grown = max(self._size, len(part) * GROWTH)
        self._size = max(1, min(self._largest, grown, in_time, result.fitting))


def map_in_this_process(
    start: StartWork, total: int, *, largest: int = LARGEST_PART
) -> Iterator[tuple[range, Tensor]]:
    """The `MapParts` without workers."""
    sizes, worker = PartSizes(total, largest=largest), PartWorker(start)
    while (part := sizes.next_part()) is not None:
        result = worker(part)
        sizes.record(part, result)
        yield part, result.rows
