"""Between 8-bit pixels and the values that the network reads.

Decided here: pixels are uint8 everywhere outside the embeddings, and a level's patches stay uint8
on their way down, so that the targets of the loss are the pixels themselves. Values are
normalised with ImageNet's mean and standard deviation per channel.

Shapes: R rows (patches of one level), T sub-patches of a patch, p side of a sub-patch.
"""

import torch
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
CHANNEL_VALUES = 256


def normalise(pixels: Tensor) -> Tensor:
    """(..., 3, p, p) values of 0 … 255, uint8 or float, to normalised float32, same shape."""
    shape = (3, 1, 1)
    mean = torch.tensor(MEAN, device=pixels.device).view(shape)
    std = torch.tensor(STD, device=pixels.device).view(shape)
    return (pixels.float() / 255 - mean) / std


def patchify(patches: Tensor, size: int) -> Tensor:
    """Cut (R, 3, P, P) into (R, T, 3, size, size), sub-patches in row-major order."""
    rows, channels, side, _ = patches.shape
    grid = side // size
    cut = patches.view(rows, channels, grid, size, grid, size)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(rows, grid * grid, channels, size, size)


def unpatchify(tokens: Tensor) -> Tensor:
    """The inverse of `patchify`: (R, T, 3, p, p) to (R, 3, P, P)."""
    rows, count, channels, size, _ = tokens.shape
    grid = round(count**0.5)
    grown = tokens.view(rows, grid, grid, channels, size, size).permute(0, 3, 1, 4, 2, 5)
    return grown.reshape(rows, channels, grid * size, grid * size)


def mean_colour(patches: Tensor) -> Tensor:
    """(R, 3, P, P) uint8 to the mean of each channel, (R, 3) float32 in 0 … 255."""
    return patches.float().mean(dim=(-2, -1))
