"""Pictures that are no squares: padding and squashing, and the sizes that are refused."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest

from fractal_model.data.adm_crop import center_crop
from fractal_model.data.decoding import UnusableImage
from fractal_model.data.fitting import describe_fit, fit_square, is_enlarged, require_fit
from tests.support.mini_imagenet import photograph

RED, GREEN = (255, 0, 0), (0, 128, 0)


def halves(width: int, height: int) -> PIL.Image.Image:
    """A picture whose upper half is red and whose lower half is green."""
    image = PIL.Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (0, height // 2, width, height))
    return image


@pytest.mark.parametrize("background", ["white", "black", "#102030"])
def test_padding_shows_the_whole_picture_between_bars(background):
    bars = PIL.ImageColor.getrgb(background)
    wide = np.asarray(fit_square(halves(64, 32), 16, "pad", background))
    assert wide.shape == (16, 16, 3)
    assert (wide[:4] == bars).all() and (wide[12:] == bars).all()
    assert (wide[4:6] == RED).all() and (wide[10:12] == GREEN).all()
    tall = np.asarray(fit_square(halves(32, 64), 16, "pad", background))
    assert (tall[:, :4] == bars).all() and (tall[:, 12:] == bars).all()
    assert (tall[:6, 4:12] == RED).all() and (tall[10:, 4:12] == GREEN).all()


def test_squashing_fills_the_square_with_the_whole_picture():
    for size in ((64, 32), (32, 64), (5, 8)):
        squashed = np.asarray(fit_square(halves(*size), 16, "squash", "white"))
        assert squashed.shape == (16, 16, 3)
        assert (squashed[:5] == RED).all() and (squashed[11:] == GREEN).all()


def test_the_crop_is_that_of_adm():
    image = photograph(0)
    cropped = fit_square(image, 16, "crop", "black")
    assert cropped.tobytes() == center_crop(image, 16).tobytes()


def test_pictures_smaller_than_the_square_are_enlarged():
    assert [is_enlarged((20, 10), 16, fit) for fit in ("crop", "pad", "squash")] == [
        True,
        False,
        True,
    ]
    assert is_enlarged((15, 10), 16, "pad") and not is_enlarged((16, 16), 16, "crop")


@pytest.mark.parametrize(
    ("size", "fit", "reason"),
    [
        ((400_000, 1), "crop", "resizing it for the crop needs more than 89,478,485 pixels"),
        ((400_000, 1), "pad", "400000 × 1 pixels: too narrow to be seen at 16 pixels"),
        ((1, 33), "pad", "too narrow to be seen"),
    ],
)
def test_pictures_too_long_for_a_square_are_refused(size, fit, reason):
    with pytest.raises(UnusableImage, match=reason):
        require_fit(size, 16, fit)


@pytest.mark.parametrize(
    ("size", "fit"), [((1, 31), "pad"), ((31, 1), "pad"), ((400_000, 1), "squash")]
)
def test_other_long_pictures_become_squares(size, fit):
    require_fit(size, 16, fit)
    assert fit_square(PIL.Image.new("RGB", size), 16, fit, "white").size == (16, 16)


def test_each_fit_is_named_in_manifests():
    assert describe_fit("crop", "black").startswith("ADM centre crop version 1")
    assert describe_fit("pad", "black").endswith("centred on black")
    assert describe_fit("squash", "black").startswith("Squash version 1")
