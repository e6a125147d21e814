"""Pictures of the page give the images of the model back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from fractal_model.generation.growth import Moment
from fractal_model.playground.views import draw_heat, enlarged, image_of, mask_of, picture_of
from tests.support import random_images


@pytest.mark.parametrize("side", [4, 8, 64, 100])
def test_an_enlarged_image_comes_back_exactly(side):
    (image,) = random_images(1, side)
    picture = enlarged(image)
    assert 256 < picture.width <= 512
    assert image_of(picture, side).equal(image)
    assert image_of(picture.convert("RGBA"), side).equal(image)


def test_another_picture_is_scaled():
    picture = Image.new("RGB", (60, 40), "red")
    picture.paste("blue", (10, 0, 50, 40))
    image = image_of(picture, 8)
    assert image.shape == (3, 8, 8)
    assert image[2].min() > 200 and image[0].max() < 50  # the middle square is blue
    smooth = Image.radial_gradient("L").resize((512, 512))
    assert image_of(smooth, 8).unique().numel() > 5  # scaled, not picked


def test_a_pixel_is_generated_if_half_of_it_is_painted():
    layer = Image.new("RGBA", (512, 512))
    ImageDraw.Draw(layer).rectangle((64, 0, 160, 63), fill="#ff7a00")  # one pixel and a half
    ImageDraw.Draw(layer).rectangle((448, 448, 470, 511), fill="#ff7a00")  # a third
    kept = mask_of(layer, 8)
    assert (~kept).nonzero().tolist() == [[0, 1], [0, 2]]


def test_a_picture_and_what_is_painted_on_it_are_cut_alike():
    layer = Image.new("RGBA", (600, 400))
    ImageDraw.Draw(layer).rectangle((100, 0, 199, 99), fill="#ff7a00")
    picture = Image.new("RGB", (600, 400), "black")
    picture.paste("white", (100, 0, 200, 100))
    kept, image = mask_of(layer, 4), image_of(picture, 4)
    assert (~kept).nonzero().tolist() == [[0, 0]]
    assert image[0, 0, 0] > 150 and image[0, 2, 2] < 50


def test_a_heat_map_is_brightest_where_the_bits_are_most():
    bits = torch.arange(16.0, dtype=torch.float64).view(4, 4)
    bits[1, 1] = math.nan
    small = np.array(draw_heat(bits).resize((4, 4), Image.Resampling.NEAREST)).astype(int)
    light = small.sum(-1)
    assert light.argmax() == 15 and light.argmin() == 0
    assert small[1, 1].tolist() == [128, 128, 128]


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (3, 2), (16, 4)])
def test_images_stand_side_by_side(count, columns):
    images = random_images(count, 8)
    picture = picture_of(Moment(images, torch.zeros(count, 8, 8, dtype=torch.bool), ()), 2)
    assert picture.width <= 560 and picture.width // columns >= 100
    if count == 1:
        assert image_of(picture, 8).equal(images[0])
