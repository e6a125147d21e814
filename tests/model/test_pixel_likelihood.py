"""The bits of each pixel add up to the likelihood of the image."""

from __future__ import annotations

import pytest
import torch

from fractal_model.model.fractal import NO_CLASS
from fractal_model.model.likelihood import mask_seeds, pass_bits
from fractal_model.model.pixel_likelihood import pixel_bits
from tests.support import images_for, tiny_model


def both(model, count, passes):
    images, labels = images_for(model, count), torch.full((count,), NO_CLASS)
    arguments = {"passes": passes, "labels": labels}
    seeds = mask_seeds(3, range(count))
    return (
        pixel_bits(model, images, seeds, **arguments),
        pass_bits(model, images, seeds, **arguments).mean(1),
    )


def test_the_pixels_of_an_ar_model_have_the_mean_of_the_image():
    bits, expected = both(tiny_model("ar"), 3, 5)
    assert bits.shape == (3, 4, 4) and bits.min() > 0
    torch.testing.assert_close(bits.mean((1, 2)), expected)


@pytest.mark.parametrize("changes", [{}, {"guiding_pixel": True}])
def test_the_pixels_of_a_mar_model_have_about_the_mean_of_the_image(changes):
    bits, expected = both(tiny_model("mar", **changes), 2, 64)
    assert bool(bits.isfinite().all())
    torch.testing.assert_close(bits.mean((1, 2)), expected, rtol=0.02, atol=0)


def test_a_pixel_that_no_pass_hides_has_no_value():
    bits, _ = both(tiny_model("mar"), 8, 1)
    assert bool(bits.isnan().any()) and bool(bits.isfinite().any())


def test_a_surprising_pixel_stands_out():
    """An AR model of four pixels: the others' bits do not depend on the last pixel."""
    model = tiny_model("ar", patch_sizes=(2, 1), generators=("ar",), sharpen=30.0)
    image = images_for(model, 1)
    changed = image.clone()
    changed[..., 1, 1] = 255 - changed[..., 1, 1]
    labels = torch.tensor([NO_CLASS])
    before, after = (
        pixel_bits(model, each, [0], passes=1, labels=labels) for each in (image, changed)
    )
    same = before == after
    assert same[0].tolist() == [[True, True], [True, False]]
