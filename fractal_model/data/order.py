"""The order of the images: a pure function of (seed, epoch, position).

Decided here: the stream of images is the permutations of the epochs, one after the other, counted
in images from 0. A single number (the global position) therefore says where training is, for any
number of workers and any batch size.

The random numbers are a bit generator's raw output, seeded by `SeedSequence`. NumPy promises that
these two give the same numbers in every version and on every platform. It does not promise this of
`Generator.permutation`, which is therefore not used.
In every function, `size` is the number of images in the split.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from fractal_model.common.errors import FractalError

_ORDER, _FLIP = 0, 1


# At least two epochs are cached, because a batch may cross from one into the next.
@lru_cache(maxsize=4)
def epoch_permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """Return the order of the images in one epoch: their indices, int64 (size,), in a read-only
    array. Raises FractalError for a negative seed or epoch and for a size below 1."""
    order = np.argsort(_random_bits(seed, _ORDER, epoch, size), kind="stable").astype(np.int64)
    order.setflags(write=False)
    return order


@lru_cache(maxsize=4)
def epoch_flips(seed: int, epoch: int, size: int) -> np.ndarray:
    """Return an array that says for each image of a split, by index, whether it is mirrored in one
    epoch: bool (size,), about half True, read-only. Raises FractalError for a negative seed or
    epoch and for a size below 1."""
    flips = _random_bits(seed, _FLIP, epoch, size) >> np.uint64(63) == 1
    flips.setflags(write=False)
    return flips


def stream_indices(*, seed: int, start: int, count: int, size: int) -> np.ndarray:
    """Return the indices of the images at `count` stream positions from `start` on: int64 (count,).
    Raises FractalError for a negative seed, start or count and for a size below 1."""
    return np.concatenate([indices for _, indices in _by_epoch(seed, start, count, size)])


def stream_flips(*, seed: int, start: int, count: int, size: int) -> np.ndarray:
    """Return whether each image that `stream_indices` returns is mirrored: bool (count,).
    Raises FractalError for a negative seed, start or count and for a size below 1."""
    pieces = _by_epoch(seed, start, count, size)
    return np.concatenate([epoch_flips(seed, epoch, size)[indices] for epoch, indices in pieces])


def _by_epoch(seed: int, start: int, count: int, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Divide the `count` stream positions from `start` on into epochs. Yield for each epoch its
    number and the indices of the images at its positions. With `count` 0, yield one epoch with no
    indices."""
    _require_at_least(seed=(seed, 0), start=(start, 0), count=(count, 0), size=(size, 1))
    end = start + count
    for epoch in range(start // size, max(start, end - 1) // size + 1):
        before = epoch * size
        yield epoch, epoch_permutation(seed, epoch, size)[max(start - before, 0) : end - before]


def _random_bits(seed: int, use: int, epoch: int, size: int) -> np.ndarray:
    """Return random numbers, uint64 (size,), that depend only on the arguments. `use` is _ORDER or
    _FLIP: the two have separate random numbers."""
    _require_at_least(seed=(seed, 0), epoch=(epoch, 0), size=(size, 1))
    sequence = np.random.SeedSequence(seed, spawn_key=(use, epoch))
    return np.random.Philox(sequence).random_raw(size)


def _require_at_least(**values: tuple[int, int]) -> None:
    for name, (value, least) in values.items():
        if value < least:
            raise FractalError(f"{name} is {value}, expected {least} or more")
