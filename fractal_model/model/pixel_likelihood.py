"""Where in an image a model is surprised: the bits of each pixel.

Decided here: the bits of a guiding pixel are spread evenly over its patch. At a MAR level the masks
of a pass hide some of the pixels. A pixel gets the mean of its bits over the passes that hide it,
with the weights of the bound.

Shapes: B images of side S, R patches of side p.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fractal_model.common.memory import keep_freed_memory
from fractal_model.model.fractal import FractalModel, Rows, ValueNats, exact_guides
from fractal_model.model.likelihood import StratifiedMasks


@torch.no_grad()
def pixel_bits(
    model: FractalModel, images: Tensor, seeds: Sequence[int], *, passes: int, labels: Tensor
) -> Tensor:
    """Return the bits per dimension of each pixel, (B, S, S) float64; NaN where no pass hides the
    pixel, which is rare with 16 passes and impossible for AR models. For an AR model the mean over
    the pixels is the image's likelihood. The arguments are those of `likelihood.pass_bits`, and the
    model must be in evaluation mode. FractalError: images or labels do not fit the model."""
    keep_freed_memory(images.device)
    passes = 1 if model.config.is_autoregressive else passes
    masks = StratifiedMasks(model.config, seeds, passes, images.device)
    shape = (len(images), *images.shape[-2:])
    bits = torch.zeros(shape, dtype=torch.float64, device=images.device)
    weight, guides = bits.clone(), bits.clone()
    for number in range(passes):
        outcome = model(images, labels, masks=masks.mask_source(number), guides=exact_guides)
        _add(bits, outcome.pixels, _bits(outcome.pixels))
        _add(weight, outcome.pixels, outcome.pixels.weight.double())
        for values in outcome.guides:
            # A patch of a lower level is predicted in some passes only, with a larger weight.
            _add(guides, values, _bits(values) * images.shape[-1] ** 2 / passes)
    return bits / weight + guides


def _bits(values: ValueNats) -> Tensor:
    """Weighted bits per dimension of each pixel or guiding pixel, (R,) float64."""
    share = values.weight.double() * values.per_image_value
    return values.nats.double().mean(1) * share / math.log(2)


def _add(canvas: Tensor, values: ValueNats, amounts: Tensor) -> None:
    """Add the amounts (R,) to the pixels of their patches on a canvas (B, S, S), in equal parts."""
    side = round(values.per_image_value**-0.5)
    rows: Rows = values.rows
    along = torch.arange(side, device=canvas.device)
    places = (
        rows.image[:, None, None],
        (rows.top[:, None] + along)[:, :, None],
        (rows.left[:, None] + along)[:, None, :],
    )
    spread = (amounts / side**2)[:, None, None].expand(-1, side, side)
    canvas.index_put_(places, spread, accumulate=True)
