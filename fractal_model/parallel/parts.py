"""Work on many images, cut into parts that fit memory.

Decided here: the cut does not change the result, because every image has its own random numbers.
Parts start small and grow as far as the memory and time of earlier parts allow. A part that still
does not fit is halved. The caller decides whether this process or workers compute: see `MapParts`.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fractal_model.common.devices import compute_device
from fractal_model.common.errors import FractalError
from fractal_model.common.memory import available_memory, peak_memory

FIRST_PART, GROWTH = 1, 8
"""Number of images in the first part: few, because the memory for an image is not known yet. Then
the largest factor by which the number of images may grow from one part to the next."""
LARGEST_PART = 1024
TARGET_SECONDS, LONGEST_SECONDS = 5.0, 60.0
"""Parts grow until they take the first duration. If the images of a part took clearly less time
than those of smaller parts, the next one may take twice as long, up to the second duration. AR
models gain most, because a CPU spends most of their time on starting small operations."""
_CLEAR_GAIN = 0.8
"""Seconds for an image in a part, divided by those in smaller parts, below which parts grow on."""
ALWAYS_FAST_ENOUGH = 4
"""A part may have this number of images even if they take longer than TARGET_SECONDS, because
smaller parts use the machine badly."""
MEMORY_SHARE = 0.5
"""Share of the free memory that a part may take. It is below 1 because the memory that a part needs
is only estimated, from smaller parts."""

Work = Callable[[range], Tensor]
"""A function that takes image numbers and returns a tensor with one row for each image."""
StartWork = Callable[[torch.device], Work]
"""A function that moves the model to a worker's device and returns the worker's `Work`. It must be
picklable."""


class MapParts(Protocol):
    """A function that computes images 0 … total − 1 with the `Work` that `start` returns, in parts
    of at most `largest` images and in any order. It yields each part's image numbers and rows."""

    def __call__(
        self, start: StartWork, total: int, *, largest: int
    ) -> Iterator[tuple[range, Tensor]]: ...


@dataclass(frozen=True)
class PartResult:
    """What a worker returns after it has computed one part."""

    rows: Tensor
    """One row for each image, on the CPU."""
    fitting: int
    """Estimated number of images that fit the worker's memory at once."""
    seconds: float


class PartWorker:
    """Computes parts on `device`, by default the GPU if there is one, else the CPU. `sharing`:
    number of workers that share the CPU's memory."""

    def __init__(
        self, start: StartWork, *, sharing: int = 1, device: torch.device | None = None
    ) -> None:
        self._device = device or compute_device()
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
    """Compute the images of a part in pieces. The first piece is the whole part; a piece that does
    not fit the memory is halved. Return the part's rows and the number of images in a piece that
    fitted. FractalError: one image alone does not fit."""
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
                    "machine with more memory"
                ) from error
        # This is outside the except block, because the traceback there keeps the tensors alive.
        size = (size + 1) // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return torch.cat(rows), size


def is_out_of_memory(error: BaseException) -> bool:
    """True if an allocation on a GPU or the CPU failed."""
    # Torch's allocator on the CPU raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "can't allocate memory" in str(error)
    )


class PartSizes:
    """Cuts images 0 … total − 1 into parts of at most `largest` images for `workers` workers. A
    part is as large as the time and memory of earlier parts allow."""

    def __init__(self, total: int, *, largest: int, workers: int = 1) -> None:
        self._total = total
        self._workers = workers
        self._at = 0
        self._largest = largest
        self._size = min(FIRST_PART, largest)
        self._seconds_per_image: dict[int, float] = {}
        """Fewest seconds for an image so far, by the number of images in a part."""

    def next_part(self) -> range | None:
        """Return the next images to compute, or None if there are no more."""
        if self._at == self._total:
            return None
        # At most each worker's share of the rest, so that the last parts end at about one time.
        even = -(-(self._total - self._at) // self._workers)
        part = range(self._at, self._at + min(self._size, even))
        self._at = part.stop
        return part

    def record(self, part: range, result: PartResult) -> None:
        """Adapt the size of the next parts to the time and memory that `part` took."""
        per_image = max(result.seconds, 1e-3) / len(part)
        longer = min(2 * result.seconds, LONGEST_SECONDS)
        target = longer if self._gains(len(part), per_image) else TARGET_SECONDS
        in_time = int(max(target, TARGET_SECONDS) / per_image)
        in_time = max(in_time, len(part), ALWAYS_FAST_ENOUGH)
        grown = max(self._size, len(part) * GROWTH)
        self._size = max(1, min(self._largest, grown, in_time, result.fitting))

    def _gains(self, images: int, seconds_per_image: float) -> bool:
        """True if an image took clearly less time in a part of this many images than in smaller
        parts."""
        known = self._seconds_per_image
        known[images] = min(seconds_per_image, known.get(images, seconds_per_image))
        smaller = [seconds for size, seconds in known.items() if size < images]
        return bool(smaller) and seconds_per_image < _CLEAR_GAIN * min(smaller)


def map_in_this_process(
    start: StartWork,
    total: int,
    *,
    largest: int = LARGEST_PART,
    device: torch.device | None = None,
) -> Iterator[tuple[range, Tensor]]:
    """Compute images 0 … total − 1 in this process, part by part, on `device`, by default the GPU
    if there is one, else the CPU. This function is a `MapParts`."""
    sizes, worker = PartSizes(total, largest=largest), PartWorker(start, device=device)
    while (part := sizes.next_part()) is not None:
        result = worker(part)
        sizes.record(part, result)
        yield part, result.rows
