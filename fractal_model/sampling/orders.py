"""The order in which an image's patches are generated: the published random order, or another.

Decided here: an order concerns the sub-patches of level 0, here called patches, because they are
seen while the image is generated. Inside a patch the order stays random, as published. An AR level
has only raster order. An order is stored as scores: the hidden patches with the highest scores are
generated next.

Shapes: B images, T patches on a square grid.
"""

from functools import lru_cache

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
    patch's centre from the image's centre, in random order at equal distance. `halton` is the same
    order in all images."""
    tokens, device = random_scores.shape[-1], random_scores.device
    if isinstance(order, tuple):
        rank = torch.tensor(order, device=device).argsort()
    elif order == "raster":
        rank = torch.arange(tokens, device=device)
    elif order == "halton":
        rank = torch.tensor(halton_order(round(tokens**0.5)), device=device).argsort()
    elif order == "centre-out":
        return random_scores - _squared_distance(round(tokens**0.5), device)
    else:
        return random_scores
    return -rank.expand_as(random_scores).to(random_scores.dtype)


@lru_cache(maxsize=16)
def halton_order(grid: int) -> tuple[int, ...]:
    """Return the row-major numbers of the patches of a grid × grid image in the order in which the
    points of the Halton sequence fall on them: its rows have base 2, its columns base 3 (Besnier et
    al., 2025). Consecutive patches are far apart, and any first part of them is spread evenly."""
    points = grid**2
    patches: dict[int, None] = {}
    while len(patches) < grid**2:  # Some patches get several points before the last one gets any.
        points *= 2
        number = torch.arange(1, points + 1)
        patch = _radical_inverse(number, 2, grid) * grid + _radical_inverse(number, 3, grid)
        patches = dict.fromkeys(patch.tolist())
    return tuple(patches)


def _radical_inverse(number: Tensor, base: int, cells: int) -> Tensor:
    """Return in which of `cells` equal parts of [0, 1) each number's radical inverse lies: the
    number's digits in `base`, mirrored at the point. Whole numbers make it exact."""
    mirrored, scale = torch.zeros_like(number), 1
    while number.any():
        mirrored, number, scale = mirrored * base + number % base, number // base, scale * base
    return mirrored * cells // scale


def _squared_distance(grid: int, device: torch.device) -> Tensor:
    """Return the squared distance of each patch's centre from the image's, (T,), in half patches.
    Unequal values differ by 4 or more, so random numbers below 1 only break ties."""
    along_axis = (2 * torch.arange(grid, device=device) - (grid - 1)).square()
    return (along_axis[:, None] + along_axis[None, :]).flatten()
