"""Grids of images."""

import pytest
import torch
from torchvision.utils import make_grid

from fractal_model.generation.pictures import GAP, enlarge, picture_grid


@pytest.mark.parametrize(("images", "columns"), [(1, 1), (1, 4), (3, 8), (5, 2), (6, 3)])
def test_a_grid_equals_that_of_torchvision(images, columns):
    pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8)
    expected = make_grid(enlarge(pixels, 2), nrow=columns, padding=GAP, pad_value=255)
    assert torch.equal(picture_grid(pixels, columns=columns), expected)
