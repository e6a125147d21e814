"""How the ranks of a training tell each other values that are no tensors.

All ranks call a function here together; without a process group there is one rank. The values
travel over the group's own device, that of gloo or NCCL.
"""

from typing import TypeVar

import torch.distributed

Value = TypeVar("Value")


def from_rank_zero(value: Value) -> Value:
    """Rank 0's value, on all ranks; the values of the others are ignored."""
    box = [value]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def of_all_ranks(value: Value) -> list[Value]:
    """Every rank's value, in the order of the ranks. Returns once all ranks have called."""
    if not torch.distributed.is_initialized():
        return [value]
    values = [value] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
