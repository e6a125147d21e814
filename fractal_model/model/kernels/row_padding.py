"""Padding of a batch with rows of zeros, so that a CPU sees few different numbers of rows.

Decided here: random masks give a different number of rows each time, and oneDNN compiles its code
for each shape, which takes longer than a small product. The number of rows is therefore rounded up
to one of 16 numbers between a power of two and the next. The results of the
other rows do not change.
"""

import torch
from torch import Tensor


def padding_rows(rows: Tensor) -> int:
    """Return how many rows of zeros to append to the batch `rows` on a CPU; 0 on other devices."""
    count = len(rows)
    step = max(1, 2 ** (count.bit_length() - 1) // 16)
    return -count % step if rows.device.type == "cpu" else 0


def pad_rows(x: Tensor, padding: int) -> Tensor:
    """Append `padding` rows of zeros to x (N, ...) and return it, (N + padding, ...)."""
    return torch.cat([x, x.new_zeros(padding, *x.shape[1:])]) if padding else x
