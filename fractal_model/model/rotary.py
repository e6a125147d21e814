"""The 2-D rotary embedding of the AR levels, which rotates queries and keys by their position.

Shapes: T sub-patches on a grid, S positions in one call, d elements of a head.
"""

import torch
from torch import Tensor


def rotary_factors(grid: int, head_width: int) -> Tensor:
    """Return the rotation at each position of an AR level, (T + 1, d/2, 2), T = grid²: cosine and
    sine of each pair of neighbouring elements. The first d/4 pairs rotate with the sub-patch's row
    in the grid, the next d/4 with its column. Position 0 is the condition token. Its factors are
    zero, so its query and key are zero vectors, as in the training of the published weights."""
    frequency = 10000.0 ** (-2 * torch.arange(head_width // 4) / (head_width / 2))
    position = torch.arange(grid, dtype=torch.float32)
    angle = position[:, None] * frequency
    rows = angle[:, None, :].expand(grid, grid, -1)
    columns = angle[None, :, :].expand(grid, grid, -1)
    angles = torch.cat([rows, columns], dim=-1).reshape(grid * grid, head_width // 2)
    factors = torch.stack([angles.cos(), angles.sin()], dim=-1)
    return torch.cat([torch.zeros_like(factors[:1]), factors])


def rotate(x: Tensor, factors: Tensor) -> Tensor:
    """Rotate each pair of neighbouring elements of x (…, S, d) by `factors` (S, d/2, 2), the
    cosines and sines of `rotary_factors`. Compute in float32 and return the type of x."""
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # torch's compiler does not compile complex numbers.
        (even, odd), (cosine, sine) = pairs.unbind(-1), factors.unbind(-1)
        rotated = torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1)
    else:
        product = torch.view_as_complex(pairs) * torch.view_as_complex(factors.float())
        rotated = torch.view_as_real(product)
    return rotated.flatten(-2).to(x.dtype)
