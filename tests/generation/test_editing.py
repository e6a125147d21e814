"""Editing: picture files and boxes become known pixels, and variants of an image keep them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fractal_model.common.errors import FractalError
from fractal_model.config.sampling import SamplingConfig
from fractal_model.generation.editing import box_mask, edit, read_image, read_mask, uncrop
from tests.support import images_for, random_images, tiny_model


def save(file, array):
    Image.fromarray(array).save(file)
    return file


def test_colour_grey_and_transparent_pictures_are_read(tmp_path):
    image = random_images(1)[0]
    array = image.permute(1, 2, 0).numpy()
    assert read_image(save(tmp_path / "rgb.png", array), 8).equal(image)
    grey = read_image(save(tmp_path / "grey.png", array[..., 0]), 8)
    assert grey.equal(image[:1].expand(3, -1, -1))
    alpha = np.dstack([array, np.full((8, 8), 255, np.uint8)])
    alpha[:4, :, 3] = 0
    on_white = read_image(save(tmp_path / "alpha.png", alpha), 8)
    assert on_white[:, 4:].equal(image[:, 4:])
    assert (on_white[:, :4] == 255).all()


def test_16_bit_grey_is_scaled(tmp_path):
    ramp = np.arange(8, dtype=np.uint16) * 9_252  # 36 steps of 257
    file = save(tmp_path / "ramp.png", np.tile(ramp, (8, 1)))
    assert (read_image(file, 8) == torch.arange(8) * 36).all()
    assert read_mask(file, 8).equal((torch.arange(8) * 36 < 128).expand(8, 8))


def test_transparent_pixels_are_generated(tmp_path):
    """Their hidden colour may be black, for example after the eraser of a picture editor."""
    mask = np.zeros((8, 8, 4), np.uint8)
    mask[:, 3:, 3] = 255
    known = read_mask(save(tmp_path / "erased.png", mask), 8)
    assert known.equal((torch.arange(8) >= 3).expand(8, 8))


def test_a_message_says_that_an_image_is_enlarged(tmp_path, capsys):
    small = save(tmp_path / "small.png", np.zeros((5, 7, 3), np.uint8))
    read_image(small, 8, fit=True)
    shown = capsys.readouterr()
    assert "small.png: 7 × 5 pixels, enlarged to 8" in shown.out + shown.err


def test_white_pixels_are_generated_and_black_ones_kept(tmp_path):
    array = np.zeros((8, 8), np.uint8)
    array[:2] = 255
    known = read_mask(save(tmp_path / "mask.png", array), 8)
    assert known.equal(torch.arange(8)[:, None].expand(8, 8) >= 2)


def test_fit_cuts_the_middle_square_of_image_and_mask(tmp_path):
    array = np.zeros((16, 32), np.uint8)
    array[:, 8:16] = 255
    file = save(tmp_path / "wide.png", array)
    left = torch.arange(8).expand(8, 8) < 4
    assert read_mask(file, 8, fit=True).equal(~left)
    assert (read_image(file, 8, fit=True)[0] > 127).equal(left)


def test_a_box_is_generated_or_everything_outside_it():
    inside = box_mask((1, 2, 3, 4), 8)
    assert not inside[1:4, 2:6].any()
    assert (~inside).sum() == 12
    assert box_mask((1, 2, 3, 4), 8, outside=True).equal(~inside)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((0, 0, 0, 4), "empty"),
        ((0, 0, 4, -1), "empty"),
        ((5, 0, 4, 4), "not inside"),
        ((-1, 0, 4, 4), "not inside"),
        ((0, 8, 1, 1), "not inside"),
    ],
)
def test_a_box_that_does_not_fit_is_refused(box, message):
    with pytest.raises(FractalError, match=message):
        box_mask(box, 8)


def test_uncropping_shrinks_the_image_into_the_middle():
    canvas, known = uncrop(torch.full((3, 8, 8), 200, dtype=torch.uint8), 0.5)
    assert known.sum() == 16
    assert known[2:6, 2:6].all()
    assert (canvas[:, known] == 200).all()
    assert (canvas[:, ~known] == 0).all()


@pytest.mark.parametrize("fraction", [0.0, 0.01, 1.0, 0.99, -1.0, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(FractalError, match="between 0.12 and 0.88"):
        uncrop(random_images(1)[0], fraction)


def test_variants_keep_known_pixels_and_differ_in_the_others():
    model = tiny_model("mar")
    image, mask = images_for(model, 1)[0], box_mask((0, 1, 3, 3), 4)
    labels, done = torch.arange(20) % 4, []
    variants = edit(model, SamplingConfig(), image, mask, labels, range(20), done.append)
    assert (variants[:, :, mask] == image[:, mask]).all()
    assert len({variant.numpy().tobytes() for variant in variants}) == 20
    assert done == sorted(done) and done[-1] == 20
    alone = edit(model, SamplingConfig(), image, mask, labels[17:18], [17])
    assert alone.equal(variants[17:18])


def test_a_picture_that_cannot_be_used_is_an_error(tmp_path):
    with pytest.raises(FractalError, match="nowhere.png cannot be read"):
        read_image(tmp_path / "nowhere.png", 8)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(FractalError, match="text.png cannot be read"):
        read_mask(tmp_path / "text.png", 8)
    cut = save(tmp_path / "cut.png", random_images(1, 64)[0].permute(1, 2, 0).numpy())
    cut.write_bytes(cut.read_bytes()[:3000])
    with pytest.raises(FractalError, match="cut.png cannot be read"):
        read_image(cut, 64)
    large = save(tmp_path / "large.png", np.zeros((10, 12), np.uint8))
    with pytest.raises(FractalError, match="12 × 10 pixels: this model takes 8 × 8.*middle square"):
        read_image(large, 8)
    with pytest.raises(FractalError, match="mask .* 12 × 10 pixels"):
        read_mask(large, 8)
    fractions = save(tmp_path / "fractions.tiff", np.full((8, 8), 0.5, np.float32))
    with pytest.raises(FractalError, match="save it with 8 bits a channel"):
        read_image(fractions, 8)
