"""The cross-entropy in parts, as a GPU computes it, against torch's own, and on the CPU."""

from __future__ import annotations

import pytest
import torch

from fractal_model.model import pixel
from fractal_model.model.fractal import exact_guides
from fractal_model.model.kernels.cross_entropy import cross_entropy_in_parts, linear_cross_entropy
from fractal_model.model.losses import training_loss
from fractal_model.training.masks import training_masks
from tests.support import random_images, tiny_model


@pytest.mark.parametrize("rows", [1, 5, 12, 100])
def test_parts_give_the_values_and_gradients_of_the_whole(rows):
    x, weight, bias = (torch.randn(size, dtype=torch.float64) for size in ((12, 6), (9, 6), (9,)))
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    targets, factors = torch.randint(9, (12,)), torch.randn(12, dtype=torch.float64)
    outcomes = []
    for nats in (
        cross_entropy_in_parts(*inputs, targets, rows),
        linear_cross_entropy(*inputs, targets),
    ):
        outcomes.append((nats, torch.autograd.grad((nats * factors).sum(), inputs)))
    torch.testing.assert_close(*outcomes)


def test_a_model_has_the_same_loss_and_gradient_in_parts(kind, monkeypatch):
    model = tiny_model(kind)
    images, outcomes = random_images(4, size=model.config.image_size), []
    labels = torch.zeros(len(images), dtype=torch.long)
    for function in (linear_cross_entropy, lambda *inputs: cross_entropy_in_parts(*inputs, rows=7)):
        monkeypatch.setattr(pixel, "linear_cross_entropy", function)
        masks = training_masks([4] * 3, torch.Generator().manual_seed(0))
        model.zero_grad()
        outcome = model(images, labels, masks=masks, guides=exact_guides)
        loss = training_loss(outcome, red_weight=5.0)
        loss.backward()
        outcomes.append([loss, *(p.grad for p in model.parameters() if p.grad is not None)])
    torch.testing.assert_close(*outcomes, rtol=1e-4, atol=1e-6)
