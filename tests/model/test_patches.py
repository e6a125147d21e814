"""Conversions between pixels and the networks' inputs, compared with plain computations."""

from __future__ import annotations

import torch

from fractal_model.model.patches import MEAN, STD, mean_colour, normalise, patchify, unpatchify
from tests.support import random_images


def test_patchify_is_row_major_and_inverted():
    images = random_images(2)
    tokens = patchify(images, 4)
    assert tokens[1, 1].equal(images[1, :, :4, 4:])
    assert tokens[1, 2].equal(images[1, :, 4:, :4])
    assert unpatchify(tokens).equal(images)


def test_white_is_normalised_with_mean_and_deviation():
    white = normalise(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten()
    assert torch.allclose(white, (1 - torch.tensor(MEAN)) / torch.tensor(STD))


def test_the_mean_colour_is_each_channels_mean():
    patch = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    patch[0, 1, 0, 0] = 254
    assert mean_colour(patch).tolist() == [[0, 63.5, 0]]
