"""The order of the images: a pure function of (seed, epoch, position).

Decided here: the stream of images is the epochs' permutations one after the other, counted in
images from 0, so that a single number (the global position) says where training is, whatever the
number of workers and the batch size.

Only a bit generator's raw output and `SeedSequence` are used: NumPy promises to keep these the
same in every version and on every platform, which it does not for `Generator.permutation`.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from fractal_model.common.errors import FractalError

_ORDER, _FLIP = 0, 1  # what the random numbers are for: two uses share none


# Two epochs are enough: a batch may cross from one into the next.
@lru_cache(maxsize=4)
def epoch_permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order of one epoch: int64 (size,), each index once. Read-only, it is kept for reuse.

    Raises FractalError for a negative seed or epoch and for a size below 1.
    """
    order = np.argsort(_random_bits(seed, _ORDER, epoch, size), kind="stable").astype(np.int64)
    order.setflags(write=False)
    return order


@lru_cache(maxsize=4)
def epoch_flips(seed: int, epoch: int, size: int) -> np.ndarray:
    """Which images are mirrored in one epoch, by index of the image: bool (size,), half of them.

    Read-only. Raises FractalError as `epoch_permutation` does.
    """
    flips = _random_bits(seed, _FLIP, epoch, size) >> np.uint64(63) == 1
    flips.setflags(write=False)
    return flips


def stream_indices(*, seed: int, start: int, count: int, size: int) -> np.ndarray:
    """Indices of the `count` images from global position `start` on: int64 (count,).

    Raises FractalError for a negative seed, start or count and for a size below 1.
    """
    return np.concatenate([indices for _, indices in _by_epoch(seed, start, count, size)])


def stream_flips(*, seed: int, start: int, count: int, size: int) -> np.ndarray:
    """Which of the images of `stream_indices` are mirrored: bool (count,).

    Decided by (seed, epoch, index of the image). Raises FractalError as `stream_indices` does.
    """
    pieces = _by_epoch(seed, start, count, size)
    return np.concatenate([epoch_flips(seed, epoch, size)[indices] for epoch, indices in pieces])


def _by_epoch(seed: int, start: int, count: int, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """The stretch of the stream, cut where an epoch ends: each epoch and its indices, one epoch
    without any where `count` is 0."""
    _require(seed=(seed, 0), start=(start, 0), count=(count, 0), size=(size, 1))
    end = start + count
    for epoch in range(start // size, max(start, end - 1) // size + 1):
        before = epoch * size
        yield epoch, epoch_permutation(seed, epoch, size)[max(start - before, 0) : end - before]


def _random_bits(seed: int, use: int, epoch: int, size: int) -> np.ndarray:
    """uint64 (size,)"""
    _require(seed=(seed, 0), epoch=(epoch, 0), size=(size, 1))
    sequence = np.random.SeedSequence(seed, spawn_key=(use, epoch))
    return np.random.Philox(sequence).random_raw(size)


def _require(**values: tuple[int, int]) -> None:
    for name, (value, least) in values.items():
        if value < least:
            raise FractalError(f"{name} is {value}, expected {least} or more")
