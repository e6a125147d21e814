"""Conversion between 8-bit pixels, patches and the numbers that the networks read.

Decided here: pixels are uint8 everywhere outside the embeddings, and patches stay uint8 from level
to level, so that the targets of the loss are the pixels themselves. Inputs are normalised with
ImageNet's mean and standard deviation per channel.

Shapes: R rows (patches of one level) of side P, T sub-patches of a patch, p side of a sub-patch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
CHANNEL_VALUES = 256


def normalise(pixels: Tensor) -> Tensor:
    """Normalise colour values 0 … 255, (..., 3, p, p) uint8 or float, with the mean and standard
    deviation of each channel. Return float32 of the same shape."""
    mean, std = _channel_values(MEAN, pixels.device), _channel_values(STD, pixels.device)
    return (pixels.float() / 255 - mean) / std


def _channel_values(values: Sequence[float], device: torch.device) -> Tensor:
    # Made on the device: the host would wait for a copy, and a CUDA graph must not contain one.
    return torch.stack([torch.full((1, 1), value, device=device) for value in values])


def patchify(patches: Tensor, size: int) -> Tensor:
    """Cut patches (R, 3, P, P) into sub-patches (R, T, 3, size, size) in row-major order."""
    rows, channels, side, _ = patches.shape
    grid = side // size
    by_grid = patches.view(rows, channels, grid, size, grid, size)
    return by_grid.permute(0, 2, 4, 1, 3, 5).reshape(rows, grid * grid, channels, size, size)


def unpatchify(tokens: Tensor) -> Tensor:
    """Join sub-patches (R, T, 3, p, p) into patches (R, 3, P, P); the inverse of `patchify`."""
    rows, count, channels, size, _ = tokens.shape
    grid = round(count**0.5)
    by_grid = tokens.view(rows, grid, grid, channels, size, size).permute(0, 3, 1, 4, 2, 5)
    return by_grid.reshape(rows, channels, grid * size, grid * size)


def mean_colour(patches: Tensor) -> Tensor:
    """Return the mean colours of patches (R, 3, P, P) uint8, as (R, 3) float32 in 0 … 255."""
    return patches.float().mean(dim=(-2, -1))
