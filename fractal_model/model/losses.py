"""What is made of a pass: the training loss, and nats per value and image.

Shapes: N rows, B images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fractal_model.model.fractal import Pass, ValueNats


def training_loss(outcome: Pass, *, red_weight: float) -> Tensor:
    """Scalar: (red_weight · red + green + blue) / (red_weight + 2), mean over the pixels that
    were predicted, plus the same for each level's guiding pixels (paper, appendix)."""
    return sum(_channel_mean(v, red_weight) for v in (outcome.pixels, *outcome.guides))


def published_evaluation_loss(outcome: Pass) -> Tensor:
    """Scalar: what the published code reports; for guided models it is no likelihood."""
    return sum(_channel_mean(v, 1.0) for v in (outcome.pixels, *outcome.guides))


def nats_per_value(outcome: Pass, images: int) -> Tensor:
    """(B,) float64: each image's negative log-likelihood bound per pixel channel, guiding pixels
    weighted by how many of them there are."""
    total = torch.zeros(images, dtype=torch.float64, device=outcome.pixels.nats.device)
    for values in (outcome.pixels, *outcome.guides):
        mean = values.nats.double().mean(1) * values.weight.double() * values.per_image_value
        total.index_add_(0, values.image, mean)
    return total


def _channel_mean(values: ValueNats, red_weight: float) -> Tensor:
    red, green, blue = values.nats.mean(0)
    return (red_weight * red + green + blue) / (red_weight + 2)
