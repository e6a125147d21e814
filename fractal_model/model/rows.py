"""A row of a matrix product, whatever stands beside it.

Decided here: an image must not depend on the batch that it is in, to the last bit in float32 on a
CPU. For a handful of rows the matrix library takes another way to the product, with another
rounding: for fewer than four, and where both factors are narrower than its threads could share.
So such a product is computed with more rows than there are. Measured with MKL on AMD and Intel
processors (`tests/model/test_rows.py`); MKL's own strict mode works on Intel's alone.

Shapes: K width of the rows that come in, N of those that come out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

FEWEST = 4
SHARE = 8
"""Rows, and columns, that are one thread's at least before threads share out K."""


def rowwise(function: Callable[[Tensor], Tensor], x: Tensor, width: int) -> Tensor:
    """`function`, which maps (..., K) to (..., N) row by row, of `x`; `width` is its narrowest
    product's N. Training, which goes on bit by bit with its own batches alone, pays nothing."""
    rows = x.numel() // x.shape[-1]
    missing = _fewest(width) - rows
    if missing <= 0 or torch.is_grad_enabled() or x.device.type != "cpu":
        return function(x)
    padded = F.pad(x.reshape(rows, -1), (0, 0, 0, missing))
    return function(padded)[:rows].view(*x.shape[:-1], -1)


def _fewest(width: int) -> int:
    shared = SHARE * _threads()
    return shared if width <= shared else FEWEST


@torch.compiler.assume_constant_result
def _threads() -> int:
    return torch.get_num_threads()
