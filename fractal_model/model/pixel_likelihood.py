"""Where in an image a model is surprised: the bits of each pixel.

Decided here: the bits of a guiding pixel are spread evenly over its patch. At a MAR level the masks
of a pass hide some of the pixels and patches. Each of them gets the mean of its bits over the
passes that predict it, with the weights of the bound, so the map does not show the masks.

Shapes: B images of side S, R patches of side p.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fractal_model.common.memory import keep_freed_memory
from fractal_model.model.fractal import FractalModel, ValueNats, evaluation_mode, exact_guides
from fractal_model.model.likelihood import StratifiedMasks


@torch.no_grad()
def pixel_bits(
    model: FractalModel, images: Tensor, seeds: Sequence[int], *, passes: int, labels: Tensor
) -> Tensor:
    """Return the bits per dimension of each pixel, (B, S, S) float64; NaN where no pass predicts
    the pixel, which is rare with 16 passes and impossible for AR models. For an AR model the mean
    over the pixels is the image's likelihood. The arguments and errors are those of
    `likelihood.pass_bits`."""
    keep_freed_memory(images.device)
    passes = 1 if model.config.is_autoregressive else passes
    masks = StratifiedMasks(model.config, seeds, passes, images.device)
    guided = sum(level.guiding_pixel for level in model.config.levels)
    sums = torch.zeros(
        2, 1 + guided, len(images), *images.shape[-2:], dtype=torch.float64, device=images.device
    )
    with evaluation_mode(model):
        for number in range(passes):
            outcome = model(images, labels, masks=masks.mask_source(number), guides=exact_guides)
            for place, values in enumerate((outcome.pixels, *outcome.guides)):
                weight = values.weight.double()
                bits = values.nats.double().mean(1) * values.per_image_value / math.log(2)
                _add(sums[0, place], values, bits * weight)
                _add(sums[1, place], values, weight)
    by_pixel: Tensor = (sums[0] / sums[1]).sum(0)
    return by_pixel


def _add(canvas: Tensor, values: ValueNats, amounts: Tensor) -> None:
    """Add the amounts (R,) to all pixels of their patches on a canvas (B, S, S)."""
    side = round(values.per_image_value**-0.5)
    places = values.rows.pixels(side)
    canvas.index_put_(places, amounts[:, None, None].expand(-1, side, side), accumulate=True)
