"""The order in which an image's patches are generated: the published random one, or another.

Decided here: an order is of the first level's patches, the ones that are seen as the image grows;
inside a patch the sub-patches keep the published random order. An AR level has one order, raster.
An order is held as scores: of the patches still hidden, those with the highest come next.

Shapes: B images, T patches of the first level on a grid of side g.
"""

import torch
from torch import Tensor

from fractal_model.common.errors import FractalError
from fractal_model.config.model import ModelConfig
from fractal_model.config.sampling import PatchOrder


def require_order(order: PatchOrder, model: ModelConfig) -> None:
    """FractalError: the model cannot generate in this order."""
    level = model.levels[0]
    if level.generator == "ar" and order not in ("random", "raster"):
        shown = repr(order) if isinstance(order, str) else f"of {len(order)} patches"
        raise FractalError(
            f"order {shown} asked of a model whose first level is AR, which always "
            f"generates in raster order: leave the order out, or take a model whose first level is "
            f"MAR"
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
        f"first-level patches once, 0 … {level.tokens - 1} row by row"
    )


def order_scores(order: PatchOrder, random_scores: Tensor) -> Tensor:
    """(B, 1, T) uniform numbers of the images' own seeds to scores of the same shape. `centre-out`
    goes by the distance of the patches' middles from the image's; patches at the same distance come
    in an order of the image's own seed."""
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
    """(T,) squared distances from the image's middle in units of half a patch; two that differ do
    so by 4 or more."""
    along = (2 * torch.arange(grid, device=device) - (grid - 1)).square()
    return (along[:, None] + along[None, :]).flatten()
