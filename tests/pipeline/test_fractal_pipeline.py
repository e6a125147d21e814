"""A pipeline does what the commands do, with the same bytes, and refuses wrong arguments."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fractal_model.common.errors import FractalError
from fractal_model.config.sampling import SamplingConfig
from fractal_model.pipeline.fractal_pipeline import FractalPipeline
from tests.support import random_images, tiny_model
from tests.support.tiny_files import save_images, save_tiny


def as_array(images):
    return np.stack([np.array(image) for image in images])


def test_images_have_the_bytes_of_fractal_sample(pipe, fractal, elsewhere):
    fractal("sample", "--classes", "dog,3,none", "--n", 2, "--seed", 5, "--out", "own.npz")
    images = pipe(classes=["dog", 3, None], num_images_per_class=2, seed=5)
    with np.load("own.npz") as arrays:
        assert np.array_equal(as_array(images), arrays["arr_0"])
    settings = ("--guidance", 3, "--logit-scale", 1.5, "--iterations", "4,1", "--order", "raster")
    fractal("sample", "--classes", "cat", "--n", 3, *settings, "--out", "changed.npz")
    images = pipe(
        classes=["cat"] * 3, guidance=3, logit_scale=1.5, iterations=[4, 1], order="raster"
    )
    with np.load("changed.npz") as arrays:
        assert np.array_equal(as_array(images), arrays["arr_0"])


def test_a_guide_has_the_bytes_of_fractal_sample(pipe, fractal, elsewhere):
    tiny_model("mar", widths=(8, 8, 4)).save_pretrained("guide")
    options = ("--guide", "guide", "--guidance", 4, "--guidance-interval", "0.2,0.9")
    fractal("sample", "--classes", "cat", "--n", 3, *options, "--out", "guided.npz")
    settings = {"guidance": 4, "guidance_interval": (0.2, 0.9)}
    images = pipe(classes=["cat"] * 3, guide="guide", **settings)
    with np.load("guided.npz") as arrays:
        assert np.array_equal(as_array(images), arrays["arr_0"])
    plain = pipe(classes=["cat"] * 3, **settings)
    assert not np.array_equal(as_array(images), as_array(plain))
    with pytest.raises(FractalError, match="guide none: "):
        pipe(guide="none")


def test_an_edited_image_has_the_bytes_of_fractal_edit(pipe, fractal, elsewhere):
    image, mask = random_images(1, 4)[0], torch.zeros(4, 4, dtype=torch.bool)
    mask[1:3, 1:] = True
    Image.fromarray(image.permute(1, 2, 0).numpy()).save("in.png")
    Image.fromarray(mask.numpy()).save("mask.png")
    options = ("--image", "in.png", "--mask", "mask.png", "--classes", "1,2", "--n", 2)
    fractal("edit", *options, "--seed", 3, "--out", "out.png")
    expected = [np.array(Image.open(f"out-class{c}-seed{s}.png")) for c in (1, 2) for s in (3, 4)]
    for picture, white in [(image, mask), ("in.png", "mask.png"), (Image.open("in.png"), mask)]:
        edited = pipe.edit(picture, white, classes=[1, 2], num_images_per_class=2, seed=3)
        assert np.array_equal(as_array(edited), expected)


def test_transparent_pixels_of_an_image_are_white_and_those_of_a_mask_are_generated(pipe):
    array = np.zeros((4, 4, 4), np.uint8)
    array[2:, :, 3] = 255
    picture = Image.fromarray(array)
    mask = np.zeros((4, 4), bool)
    mask[:, 0] = True
    (edited,) = pipe.edit(picture, mask)
    assert (np.array(edited)[:2, 1:] == 255).all() and (np.array(edited)[2:, 1:] == 0).all()
    kept = random_images(1, 4)[0]
    (edited,) = pipe.edit(kept, picture, output_type="pt")
    assert edited[:, 2:].equal(kept[:, 2:]) and not edited[:, :2].equal(kept[:, :2])
    assert array[..., 3].sum() == np.array(picture)[..., 3].sum()  # The picture is not changed.


def test_an_animation_has_the_bytes_of_fractal_animate(pipe, fractal, elsewhere):
    fractal("animate", "--classes", "dog,ant", "--seed", 2, "--frames", 5, "--out", "a.gif")
    files = pipe.animate("b.gif", ["dog", "ant"], seed=2, frames=5)
    assert [file.name for file in files] == ["b.gif", "b.png"]
    for ending in ("gif", "png"):
        assert (elsewhere / f"a.{ending}").read_bytes() == (elsewhere / f"b.{ending}").read_bytes()


def test_the_likelihood_is_that_of_fractal_likelihood(pipe, fractal, elsewhere):
    data = save_images(elsewhere / "tiny", names=pipe.classes)
    pixels = random_images(11, size=4)
    for conditional, classes in ((), None), (("--conditional",), [i % 4 for i in range(11)]):
        options = ("--data", data, "--passes", 3, "--seed", 5, "--out", "bits.csv")
        printed = fractal("likelihood", *options, *conditional)
        result = pipe.likelihood(pixels, classes, passes=3, seed=5, batch_size=4)
        assert result.per_image.tolist() == pd.read_csv("bits.csv")["bits_per_dim"].tolist()
        assert f"{result.mean:.4f} bits/dim ± {result.standard_error:.4f}" in printed
    pictures = [Image.fromarray(image) for image in pixels.permute(0, 2, 3, 1).numpy()]
    assert pipe.likelihood(pictures, classes, passes=3, seed=5).mean == result.mean


def test_the_bits_of_the_pixels_have_the_mean_of_the_likelihood(tmp_path):
    tiny_model("ar").save_pretrained(tmp_path / "ar")
    pipe = FractalPipeline.from_pretrained(tmp_path / "ar")
    pipe.set_progress_bar_config(disable=True)
    images = random_images(3, 4)
    bits = pipe.pixel_bits(images, classes=[0, 1, None], batch_size=2)
    assert bits.shape == (3, 4, 4)
    torch.testing.assert_close(
        bits.mean((1, 2)), pipe.likelihood(images, classes=[0, 1, None]).per_image
    )
    with pytest.raises(FractalError, match="passes 0"):
        pipe.pixel_bits(images, passes=0)


def test_the_output_types_hold_the_same_pixels_for_any_batch_size(pipe):
    images = as_array(pipe(["cat", "ant"], num_images_per_class=3))
    tensor = pipe(["cat", "ant"], num_images_per_class=3, output_type="pt", batch_size=4)
    array = pipe(["cat", "ant"], num_images_per_class=3, output_type="np", batch_size=1)
    assert tensor.shape == (6, 3, 4, 4) and tensor.dtype == torch.uint8
    assert np.array_equal(tensor.permute(0, 2, 3, 1), images)
    assert np.array_equal(array, images) and array.dtype == np.uint8


def test_class_numbers_of_arrays_and_tensors_are_taken(pipe):
    images = pipe([1, 3], output_type="pt")
    for classes in (np.array([1, 3]), torch.tensor([1, 3])):
        assert pipe(classes, output_type="pt").equal(images)
    for number in (np.int64(1), torch.tensor(1)):
        assert pipe(number, output_type="pt").equal(images[:1])


def test_a_generator_decides_the_first_seed(pipe):
    first = pipe("cat", generator=torch.Generator().manual_seed(1), output_type="np")
    same = pipe("cat", generator=torch.Generator().manual_seed(1), output_type="np")
    other = pipe("cat", generator=torch.Generator().manual_seed(2), output_type="np")
    assert np.array_equal(first, same) and not np.array_equal(first, other)


def test_the_progress_bar_can_be_switched_off(exported, capsys):
    pipe = FractalPipeline.from_pretrained(exported)
    pipe("cat", num_images_per_class=3)
    assert "3/3" in capsys.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    pipe("cat")
    assert capsys.readouterr().err == ""


def test_a_saved_pipeline_draws_the_same_images(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "copy")
    copy = FractalPipeline.from_pretrained(tmp_path / "copy")
    assert copy.sampling == pipe.sampling == SamplingConfig(**pipe.sampling.model_dump())
    assert copy.classes == ("cat", "dog", "cow", "ant")
    assert np.array_equal(copy("dog", output_type="np"), pipe("dog", output_type="np"))
    with pytest.raises(FractalError, match="copy exists already"):
        pipe.save_pretrained(tmp_path / "copy")


def test_a_checkpoint_of_an_earlier_version_has_neutral_settings(tmp_path):
    pipe = FractalPipeline.from_pretrained(save_tiny(tmp_path / "c"), device="cpu")
    assert pipe.sampling == SamplingConfig() and pipe.classes == ()
    assert pipe.to("cpu") is pipe and pipe.device.type == "cpu"
    assert pipe(1, output_type="pt").shape == (1, 3, 4, 4)


def test_a_model_without_a_file_can_be_used():
    pipe = FractalPipeline(tiny_model("ar"))
    assert pipe.likelihood(random_images(2, 4)).exact


IMAGE, MASK = random_images(1, 4)[0], np.ones((4, 4), bool)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p("dgo"), "class 'dgo' is unknown: .* did you mean 'dog'"),
        (lambda p: p(4), r"class '4' is unknown: this model knows 0 … 3 .*and 'none'"),
        (lambda p: p([-1]), "class '-1' is unknown"),
        (lambda p: p([1.5]), "a class is 1.5: give a whole number"),
        (lambda p: p(1.5), "a class is 1.5: give a whole number"),
        (lambda p: p([]), "0 images asked for"),
        (lambda p: p("cat", num_images_per_class=-2), "-2 images asked for: give 1 … 1,000,000"),
        (lambda p: p("cat", num_images_per_class=0.5), "num_images_per_class is 0.5: give a whole"),
        (lambda p: p("cat", num_images_per_class=10**7), "10,000,000 images asked for"),
        (lambda p: p("cat", seed=-1), "seed -1 with 1 image is out of range"),
        (lambda p: p("cat", seed="a"), "seed is 'a': give a whole number"),
        (lambda p: p("cat", seed=0, generator=torch.Generator()), "seed and generator are both"),
        (lambda p: p("cat", batch_size=0), "batch size 0 is out of range"),
        (lambda p: p("cat", batch_size="a"), "batch_size is 'a': give a whole number"),
        (lambda p: p("cat", output_type="pdf"), "output_type is 'pdf': give pil or pt or np"),
        (lambda p: p("cat", guidance=-1), "guidance: .* found -1.*allowed: guidance 0 … 1000"),
        (lambda p: p("cat", logit_scale="x"), "logit_scale: "),
        (lambda p: p("cat", iterations=[5, 1]), "iterations is 5 for the level of 4 px"),
        (lambda p: p("cat", order="spiral"), "order"),
        (lambda p: p.edit(random_images(1, 8)[0], MASK), "the image is 8 × 8 pixels: this model"),
        (lambda p: p.edit(IMAGE, np.ones((2, 4), bool)), "the mask is 4 × 2 pixels: this model"),
        (
            lambda p: p.edit(IMAGE.float(), MASK),
            r"image is an array of shape \(3, 4, 4\) .*float32",
        ),
        (lambda p: p.edit(IMAGE[None], MASK), r"image is an array of shape \(1, 3, 4, 4\)"),
        (lambda p: p.edit("none.png", MASK), "the image none.png cannot be read"),
        (lambda p: p.edit(IMAGE, ~MASK), "nothing is left to generate"),
        (lambda p: p.edit(IMAGE, MASK, ["cat"] * 2), "class 0 is given 2 times"),
        (lambda p: p.animate("x.mp4"), "must end with .gif or .webp"),
        (lambda p: p.animate("x.gif", frames=1), "frames is 1: give a number from 2"),
        (lambda p: p.likelihood([]), "there are no images"),
        (lambda p: p.likelihood(random_images(2, 8)), "the image 0 is 8 × 8 pixels"),
        (lambda p: p.likelihood(IMAGE, ["cat", "dog"]), "2 classes and 1 image given"),
        (lambda p: p.likelihood(IMAGE, passes=0), "passes 0, "),
        (lambda p: p.likelihood(IMAGE, passes=1.5), "passes is 1.5: give a whole number"),
        (lambda p: p.likelihood(IMAGE, seed="a"), "seed is 'a': give a whole number"),
        (lambda p: p.likelihood(IMAGE, batch_size=0), "batch size 0 "),
        (lambda p: p.to("gpu"), "the device 'gpu' cannot be used"),
        (lambda p: FractalPipeline.from_pretrained("/no/where"), "there is no model /no/where"),
    ],
)
def test_a_wrong_argument_is_refused_on_one_line(pipe, elsewhere, call, message):
    with pytest.raises(FractalError, match=message) as raised:
        call(pipe)
    assert "\n" not in str(raised.value)
    assert list(elsewhere.iterdir()) == []
