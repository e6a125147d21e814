"""The training loss, and the nats of each image, from the outcome of a pass.

Shapes: N rows, B images.
"""

from functools import reduce
from operator import add

import torch
from torch import Tensor

from fractal_model.model.fractal import Pass, ValueNats


def training_loss(outcome: Pass, *, red_weight: float) -> Tensor:
    """Scalar: (red_weight · red + green + blue) / (red_weight + 2), mean over the pixels that
    were predicted, plus the same for each level's guiding pixels (paper, appendix)."""
    parts = (_channel_mean(values, red_weight) for values in (outcome.pixels, *outcome.guides))
    return reduce(add, parts)


def published_evaluation_loss(outcome: Pass) -> Tensor:
    """Scalar: the loss that the published code reports; for guided models it is no likelihood."""
    return training_loss(outcome, red_weight=1.0)


def nats_by_part(outcome: Pass, images: int) -> Tensor:
    """(B, 3 + G) float64: an image's negative log-likelihood bound per pixel channel is the sum of
    a row. Its terms: the pixels' red, green and blue, then the guiding pixels of each of the G
    levels that have them, weighted by how many of them there are."""
    parts = []
    for values in (outcome.pixels, *outcome.guides):
        shares = values.weight.double() * values.per_image_value / 3
        channels = torch.zeros(images, 3, dtype=torch.float64, device=shares.device)
        channels.index_add_(0, values.image, values.nats.double() * shares[:, None])
        parts.append(channels)
    pixels, *guides = parts
    return torch.cat([pixels, *(guide.sum(1, keepdim=True) for guide in guides)], dim=1)


def _channel_mean(values: ValueNats, red_weight: float) -> Tensor:
    red, green, blue = values.nats.mean(0).unbind()
    return (red_weight * red + green + blue) / (red_weight + 2)
