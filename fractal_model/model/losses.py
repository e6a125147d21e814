"""The training loss and each image's negative log-likelihood, from the outcome of a pass.

Shapes: N rows, B images.
"""

from functools import reduce
from operator import add

import torch
from torch import Tensor

from fractal_model.model.fractal import Pass, ValueNats


def training_loss(outcome: Pass, *, red_weight: float) -> Tensor:
    """Return the training loss, a scalar: the mean loss of the predicted pixels, plus the mean loss
    of each level's guiding pixels (paper, appendix). The loss of a pixel is (red_weight · red +
    green + blue) / (red_weight + 2), each colour being its negative log-probability."""
    means = (_channel_mean(values, red_weight) for values in (outcome.pixels, *outcome.guides))
    return reduce(add, means)


def published_evaluation_loss(outcome: Pass) -> Tensor:
    """Return the evaluation loss of the published code, a scalar. With guiding pixels it is no
    likelihood, because it does not weight them by their number."""
    return training_loss(outcome, red_weight=1.0)


def nats_by_term(outcome: Pass, images: int) -> Tensor:
    """Return the negative log-likelihood of B images in nats per dimension, as terms to be summed,
    (B, 3 + G) float64. For MAR the sum estimates an upper bound. The terms are red, green and blue
    of the pixels, then the guiding pixels of each of the G levels that have them, weighted by their
    number."""
    terms = []
    for values in (outcome.pixels, *outcome.guides):
        shares = values.weight.double() * values.per_image_value / 3
        channels = torch.zeros(images, 3, dtype=torch.float64, device=shares.device)
        channels.index_add_(0, values.image, values.nats.double() * shares[:, None])
        terms.append(channels)
    pixels, *guides = terms
    return torch.cat([pixels, *(guide.sum(1, keepdim=True) for guide in guides)], dim=1)


def _channel_mean(values: ValueNats, red_weight: float) -> Tensor:
    red, green, blue = values.nats.mean(0).unbind()
    return (red_weight * red + green + blue) / (red_weight + 2)
