"""The 2-D rotary embedding of the AR levels, which rotates queries and keys by their position.

Shapes: T sub-patches on a grid, S positions of a call, d elements of a head.
"""

import torch
from torch import Tensor


def rotary_factors(grid: int, head_width: int) -> Tensor:
    """Cosines and sines of an AR level's positions, (T + 1, d/2, 2), T = grid². The first d/4 pairs
    of neighbouring elements rotate with the row of the sub-patch, the next d/4 pairs with its
    column. Position 0 is the condition token. Its factors are zero, so its query and key are zero
    vectors, as in the training of the published weights."""
    frequency = 10000.0 ** (-2 * torch.arange(head_width // 4) / (head_width / 2))
    position = torch.arange(grid, dtype=torch.float32)
    angle = position[:, None] * frequency
    rows = angle[:, None, :].expand(grid, grid, -1)
    columns = angle[None, :, :].expand(grid, grid, -1)
    angles = torch.cat([rows, columns], dim=-1).reshape(grid * grid, head_width // 2)
    factors = torch.stack([angles.cos(), angles.sin()], dim=-1)
    return torch.cat([torch.zeros_like(factors[:1]), factors])


def rotate(x: Tensor, factors: Tensor) -> Tensor:
    """Rotate the pairs of x (…, S, d) by factors (S, d/2, 2), in float32. Return x's type."""
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # torch's compiler does not compile complex numbers.
        (even, odd), (cosine, sine) = pairs.unbind(-1), factors.unbind(-1)
        rotated = torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1)
    else:
        product = torch.view_as_complex(pairs) * torch.view_as_complex(factors.float())
        rotated = torch.view_as_real(product)
    return rotated.flatten(-2).to(x.dtype)
