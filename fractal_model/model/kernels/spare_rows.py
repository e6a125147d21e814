"""Rows of zeros that a CPU computes beside the real ones, so that there are few shapes.

Decided here: masks leave another number of rows each time, and oneDNN compiles its code for each
shape, which takes longer than a small product. The number of rows is therefore rounded up, to one
of sixteen between a power of two and the next. A spare row changes no other.
"""

import torch
from torch import Tensor


def spare_rows(rows: Tensor) -> int:
    """How many rows a CPU adds to these; 0 on other devices."""
    count = len(rows)
    step = max(1, 2 ** (count.bit_length() - 1) // 16)
    return -count % step if rows.device.type == "cpu" else 0


def with_spare(x: Tensor, spare: int) -> Tensor:
    """(N, ...) to (N + spare, ...): x, then rows of zeros."""
    return torch.cat([x, x.new_zeros(spare, *x.shape[1:])]) if spare else x
