"""Dropout whose masks are drawn quickly on a CPU.

Decided here: torch draws one random number per element on one core, which takes a sixth of a
training step. Here one 64-bit number serves four elements, so the rate is rounded to a multiple of
1/65536 (0.1 to 0.100006). A GPU uses torch's dropout.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STEPS = 2**16


class Dropout(nn.Dropout):
    """Dropout as a module like torch's, with the faster masks. It acts in training only."""

    __call__: Callable[..., Tensor]

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x


def dropout(x: Tensor, rate: float) -> Tensor:
    """Set elements of x to zero with probability `rate`, and scale the others to keep the mean."""
    dropped = min(round(rate * _STEPS), _STEPS - 1)
    if dropped == 0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, rate)
    return x * _draw_mask(x, dropped).mul_(_STEPS / (_STEPS - dropped))


def _draw_mask(x: Tensor, dropped: int) -> Tensor:
    """Draw a mask in the shape and type of x: 0 with probability `dropped` / 65536, otherwise 1."""
    words = torch.empty(x.numel() // 4 + 1, dtype=torch.int64).random_(-(2**63), None)
    drawn = words.view(torch.int16)[: x.numel()].view(x.shape)
    # The comparison writes 0 and 1 in x's type. By way of bools it takes 4 or 8 times as long.
    return torch.ge(drawn, dropped - _STEPS // 2, out=torch.empty_like(x))
