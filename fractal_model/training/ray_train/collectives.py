"""What the ranks of a training tell each other beside tensors; alone, nothing is to be told.

All ranks call these together. The process group's own device is used, gloo's or NCCL's.
"""

from __future__ import annotations

from typing import TypeVar

import torch.distributed

Value = TypeVar("Value")


def from_rank_zero(value: Value) -> Value:
    """Rank 0's value, on all ranks; what the others give is not looked at."""
    box = [value]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def of_all_ranks(value: Value) -> list[Value]:
    """Every rank's value, by rank. Returns once all have called."""
    if not torch.distributed.is_initialized():
        return [value]
    found = [value] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, value)
    return found
