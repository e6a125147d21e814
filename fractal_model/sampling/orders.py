"""The order in which an image's patches are generated: the published random order, or another.

Decided here: an order concerns the sub-patches of level 0, here called patches, because they are
seen while the image is generated. Inside a patch the order stays random, as published. An AR level
has only raster order. An order is stored as scores: the hidden patches with the highest scores are
generated next.

Shapes: B images, T patches on a square grid.
"""

import torch
from torch import Tensor

from fractal_model.common.errors import FractalError
from fractal_model.config.model import ModelConfig
from fractal_model.config.sampling import PatchOrder


def require_order(order: PatchOrder, model: ModelConfig) -> None:
    """Raise FractalError if the model cannot generate patches in the given order."""
    level = model.levels[0]
    if level.generator == "ar" and order not in ("random", "raster"):
        label = repr(order) if isinstance(order, str) else f"of {len(order)} patches"
        raise FractalError(
            f"order {label} does not fit a model whose first level is AR, which generates in "
            f"raster order: leave the order out, or take a model whose first level is MAR"
        )
    if not isinstance(order, tuple) or sorted(order) == list(range(level.tokens)):
        return
    if len(order) != level.tokens:
        reason = f"its length is {len(order)}"
    elif outside := [n for n in order if not 0 <= n < level.tokens]:
        reason = f"{outside[0]} is out of range"
    else:
        reason = f"it repeats {next(n for n in order if order.count(n) > 1)}"
    raise FractalError(
        f"the given order does not fit: {reason}; give each of this model's {level.tokens} "
        f"first-level patches once, numbered row by row from 0 to {level.tokens - 1}"
    )


def order_scores(order: PatchOrder, random_scores: Tensor) -> Tensor:
    """Return scores (B, 1, T) for `order`; the patch with the highest score comes first.
    `random_scores` are uniform numbers of this shape. `centre-out` sorts by the distance of a
    patch's centre from the image's centre, in random order at equal distance."""
    tokens, device = random_scores.shape[-1], random_scores.device
    if isinstance(order, tuple):
        rank = torch.tensor(order, device=device).argsort()
    elif order == "raster":
        rank = torch.arange(tokens, device=device)
    elif order == "centre-out":
        return random_scores - _squared_distance(round(tokens**0.5), device)
    else:
        return random_scores
    return -rank.expand_as(random_scores).to(random_scores.dtype)


def _squared_distance(grid: int, device: torch.device) -> Tensor:
    """Return the squared distance of each patch's centre from the image's, (T,), in half patches.
    Unequal values differ by 4 or more, so random numbers below 1 only break ties."""
    along_axis = (2 * torch.arange(grid, device=device) - (grid - 1)).square()
    return (along_axis[:, None] + along_axis[None, :]).flatten()
