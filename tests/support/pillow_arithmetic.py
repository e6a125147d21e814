"""Pillow's resizing of 8-bit images, implemented again with NumPy.

Its source (libImaging/Resample.c) documents two passes, horizontal and then vertical. Each is a
convolution with the filter, stretched by the reduction. Weights are rounded to fixed point with 22
bits after the point. The result of each pass is rounded and clipped to 8 bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

_BITS = 32 - 8 - 2

Filter = tuple[Callable[[float], float], float]
"""A filter's function and its support."""


def _box(x: float) -> float:
    return 1.0 if -0.5 < x <= 0.5 else 0.0


def _bicubic(x: float, a: float = -0.5) -> float:
    """The cubic filter of Keys (1981) with Pillow's value of a."""
    x = abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


BOX: Filter = (_box, 0.5)
BICUBIC: Filter = (_bicubic, 2.0)


def resize(pixels: np.ndarray, width: int, height: int, kind: Filter) -> np.ndarray:
    """Resize uint8 pixels (H, W, 3) to (height, width, 3)."""
    if pixels.shape[1] != width:
        pixels = _convolve(pixels, width, kind)
    if pixels.shape[0] != height:
        pixels = _convolve(pixels.transpose(1, 0, 2), height, kind).transpose(1, 0, 2)
    return pixels


def _convolve(pixels: np.ndarray, size: int, kind: Filter) -> np.ndarray:
    """Resize the second axis to `size`."""
    resized = np.empty((pixels.shape[0], size, pixels.shape[2]), dtype=np.uint8)
    for place in range(size):
        first, weights = _weights(pixels.shape[1], size, place, kind)
        window = pixels[:, first : first + len(weights)].astype(np.int64)
        total = np.einsum("hwc,w->hc", window, weights) + (1 << (_BITS - 1))
        resized[:, place] = (total >> _BITS).clip(0, 255)
    return resized


def _weights(size: int, new_size: int, place: int, kind: Filter) -> tuple[int, np.ndarray]:
    """The first input pixel of output pixel `place`, and the fixed-point weights of its inputs."""
    function, support = kind
    scale = size / new_size
    stretch = max(scale, 1.0)
    centre = (place + 0.5) * scale
    first = max(0, int(centre - support * stretch + 0.5))
    stop = min(size, int(centre + support * stretch + 0.5))
    weights = [function((x - centre + 0.5) * (1.0 / stretch)) for x in range(first, stop)]
    total = sum(weights)
    fixed = [weight / total * (1 << _BITS) for weight in weights]
    return first, np.array([int(math.copysign(abs(w) + 0.5, w)) for w in fixed], dtype=np.int64)
