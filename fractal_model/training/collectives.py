"""Exchange of Python values between the ranks of a training, over gloo or NCCL.

All ranks must call a function of this module together. Without a process group there is one rank.
"""

from typing import TypeVar

import torch.distributed

Value = TypeVar("Value")


def broadcast_from_rank_zero(value: Value) -> Value:
    """Return rank 0's `value` on all ranks. The values of the other ranks are ignored."""
    values = [value]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def gather_from_ranks(value: Value) -> list[Value]:
    """Wait until all ranks call this function; return the values of all ranks, ordered by rank."""
    if not torch.distributed.is_initialized():
        return [value]
    values = [value] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
