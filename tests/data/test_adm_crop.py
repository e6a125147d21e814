"""The crop equals a second implementation of ADM's crop in every pixel, resizing included."""

import math

import numpy as np
import PIL.Image
import pytest

from fractal_model.data.adm_crop import center_crop, pixels_of_crop
from tests.support.pillow_arithmetic import BICUBIC, BOX, resize


def crop_by_the_paper(pixels: np.ndarray, side: int) -> np.ndarray:
    """Crop an array: halve while the short side is twice `side` or more, bicubic, centre."""
    while min(pixels.shape[:2]) >= 2 * side:
        height, width = (length // 2 for length in pixels.shape[:2])
        pixels = resize(pixels, width, height, BOX)
    scale = side / min(pixels.shape[:2])
    height, width = (round(length * scale) for length in pixels.shape[:2])
    pixels = resize(pixels, width, height, BICUBIC)
    top = math.floor((pixels.shape[0] - side) / 2)
    left = math.floor((pixels.shape[1] - side) / 2)
    return pixels[top : top + side, left : left + side]


def assert_equals_the_paper(width: int, height: int, side: int) -> None:
    random = np.random.default_rng(width * height)
    pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    crop = np.asarray(center_crop(PIL.Image.fromarray(pixels), side))
    assert crop.shape == (side, side, 3)
    assert (crop == crop_by_the_paper(pixels, side)).all()


@pytest.mark.parametrize("side", [8, 64, 256])
@pytest.mark.parametrize(
    ("width", "height"),
    [(500, 375), (375, 500), (501, 333), (64, 64), (127, 128), (3, 200), (1, 1), (2049, 1537)],
)
def test_the_crop_equals_the_published_one(width, height, side):
    assert_equals_the_paper(width, height, side)


@pytest.mark.parametrize(("width", "height"), [(6001, 4003), (2, 1), (1, 7), (9001, 257)])
def test_huge_and_tiny_images_are_cropped_as_published(width, height):
    assert_equals_the_paper(width, height, 64)


def test_the_box_filter_is_a_mean_of_four_pixels():
    """An image of even sides and exactly twice the size is checked by arithmetic."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    rows = (pixels[:, 0::2].astype(int) + pixels[:, 1::2] + 1) // 2
    means = (rows[0::2] + rows[1::2] + 1) // 2
    crop = np.asarray(center_crop(PIL.Image.fromarray(pixels), 8))
    assert (crop == means[:, 2:10]).all()


def test_pixels_of_the_crop_grow_with_the_aspect_ratio():
    assert pixels_of_crop((64, 64), 16) == 256
    assert pixels_of_crop((1000, 1), 64) == pixels_of_crop((1, 1000), 64) == 64_000 * 64
