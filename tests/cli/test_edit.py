"""`fractal edit` and `fractal animate`."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fractal_model.checkpoints.checkpoint import Progress, save_checkpoint
from fractal_model.cli.app import app
from fractal_model.common.errors import FractalError
from tests.support import REPOSITORY, random_images, tiny_model

PARAMS = str(REPOSITORY / "params.yaml")
PROGRESS = Progress(size="tiny", fingerprint="f" * 64, position=0, steps=0)
# The settings of digits, with fewer iterations for the tiny model of patch sizes 4, 2, 1.
SETTINGS = ["--size", "digits", "--iterations", "3,4", "--params", PARAMS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_checkpoint(folder / "checkpoint", model=tiny_model("mar"), optimizer={}, progress=PROGRESS)
    array = random_images(1, 4)[0].permute(1, 2, 0).numpy()
    Image.fromarray(array).save(folder / "in.png")
    mask = np.zeros((4, 4), np.uint8)
    mask[1:3, 1:] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    return folder


def run(folder, *arguments):
    """Run a command and return what it prints; raise what it raises."""
    command = [arguments[0], "--model", str(folder / "checkpoint"), *SETTINGS, *arguments[1:]]
    done = CliRunner().invoke(app, command)
    if done.exception is not None:
        raise done.exception
    return done.output


def run_edit(folder, out, *arguments, classes="1"):
    image = str(folder / "in.png")
    return run(
        folder, "edit", "--image", image, "--classes", classes, "--out", str(out), *arguments
    )


def pixels(file):
    return np.array(Image.open(file))


def test_the_white_of_a_mask_is_generated_and_the_rest_stays(folder, tmp_path):
    out = tmp_path / "new" / "out.png"
    printed = run_edit(folder, out, "--mask", str(folder / "mask.png"))
    assert "38% of the pixels generated" in printed
    kept = pixels(folder / "mask.png") == 0
    assert (pixels(out)[kept] == pixels(folder / "in.png")[kept]).all()
    assert (pixels(out)[~kept] != pixels(folder / "in.png")[~kept]).any()
    assert [path.name for path in out.parent.iterdir()] == ["out.png"]


def test_variants_have_numbered_files_and_a_grid(folder, tmp_path):
    grid = tmp_path / "grid.png"
    variants = ("--n", "2", "--seed", "5", "--grid", str(grid))
    run_edit(folder, tmp_path / "o.png", "--box", "0,0,2,4", *variants, classes="1,none")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "o-class1-seed5.png",
        "o-class1-seed6.png",
        "o-classnone-seed5.png",
        "o-classnone-seed6.png",
        "grid.png",
    }
    assert pixels(grid).shape == (2 * 66 + 2, 4 * 66 + 2, 3)
    run_edit(folder, tmp_path / "one.png", "--box", "0,0,2,4", "--seed", "6")
    assert (pixels(tmp_path / "one.png") == pixels(tmp_path / "o-class1-seed6.png")).all()


def test_workers_and_batches_make_the_same_variants(folder, tmp_path):
    box = ("--box", "0,0,2,4", "--n", "3", "--seed", "5")
    run_edit(folder, tmp_path / "a.png", *box)
    run_edit(folder, tmp_path / "b.png", *box, "--workers", "2", "--batch-size", "1")
    for seed in (5, 6, 7):
        alone, shared = (pixels(tmp_path / f"{name}-class1-seed{seed}.png") for name in "ab")
        assert (alone == shared).all()


def test_the_box_stays_with_outside_and_uncrop_shrinks(folder, tmp_path):
    run_edit(folder, tmp_path / "a.png", "--box", "1,1,2,2", "--outside")
    assert (pixels(tmp_path / "a.png") == pixels(folder / "in.png"))[1:3, 1:3].all()
    assert "75%" in run_edit(folder, tmp_path / "b.png", "--uncrop", "0.5")


def test_the_order_can_come_from_a_file(folder, tmp_path):
    file = tmp_path / "order.txt"
    file.write_text("3, 1\n0 2\n")
    out, box = tmp_path / "o.png", ("--box", "0,0,4,4")
    run_edit(folder, out, *box, "--order", str(file))
    from_file = pixels(out)
    run_edit(folder, out, *box, "--order", "raster")
    assert (from_file != pixels(out)).any()


BOX = ("--box", "0,0,2,2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "found no option to say what to generate"),
        ((*BOX, "--uncrop", "0.5"), "found --box and --uncrop to say"),
        (("--mask", "mask.png", "--outside"), "--outside is given without --box"),
        (("--box", "0,0,2"), "has 3 numbers, expected 4"),
        (("--box", "0,0,2,x"), "whole numbers"),
        (("--box", "3,3,2,2"), "not inside"),
        (("--mask", "nowhere.png"), "nowhere.png cannot be read"),
        ((*BOX, "--guidance", "nan"), "guidance: Input should be a finite number"),
        ((*BOX, "--logit-scale", "0"), "logit_scale"),
        ((*BOX, "--iterations", "3"), "has 1 number, expected 2"),
        ((*BOX, "--iterations", "9,1"), "iterations is 9 for the level"),
        ((*BOX, "--order", "spiral"), "neither random, raster, centre-out, halton nor a file"),
        ((*BOX, "--classes", "9"), "class '9' is unknown"),
        ((*BOX, "--seed", "4294967296"), "seed 4294967296 with 1 image .* 0 … 4294967295"),
        ((*BOX, "--seed", "-1"), "seed -1 with 1 image is"),
        ((*BOX, "--n", "1000000000"), "1,000,000,000 images asked for: give 1 … 1,000,000"),
        ((*BOX, "--n", "0"), "0 images asked for"),
        ((*BOX, "--batch-size", "0"), "batch size 0"),
        ((*BOX, "--classes", "2,1,2"), "class 2 is given 2 times"),
        ((*BOX, "--grid", "g.jpg"), "g.jpg is no PNG file"),
        ((*BOX, "--out", "o.png", "--grid", "./o.png"), "is the file of an edited image"),
        (("--box", "0,0,4,4", "--outside"), "nothing is left to generate, because all pixels"),
        ((*BOX, "--size", "huge"), "size 'huge' is unknown"),
        ((*BOX, "--out", "o.jpg"), "name it .png"),
        ((*BOX, "--out", "/proc/no folder/o.png"), "cannot be made"),
    ],
)
def test_edit_refuses_wrong_options(folder, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FractalError, match=message) as raised:
        run_edit(folder, tmp_path / "o.png", *arguments)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_model_of_no_size_needs_the_option_size(folder, tmp_path):
    command = ["edit", "--model", str(folder / "checkpoint"), "--params", PARAMS, *BOX]
    command += ["--image", str(folder / "in.png"), "--classes", "1", "--out", "o.png"]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, FractalError)
    assert "no size in params.yaml has the layers of this model: choose" in str(done.exception)


def test_an_order_file_without_numbers_is_refused(folder, tmp_path):
    (tmp_path / "order.txt").write_text("first, second")
    with pytest.raises(FractalError, match="order file .* expected whole numbers"):
        run_edit(folder, tmp_path / "o.png", *BOX, "--order", str(tmp_path / "order.txt"))


def test_animate_writes_both_files(folder, tmp_path):
    out = tmp_path / "growth.gif"
    printed = run(folder, "animate", "--classes", "1,2", "--out", str(out), "--frames", "5")
    assert "growth.gif" in printed and "growth.png" in printed
    with Image.open(out) as opened:
        assert opened.n_frames == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "a.mp4"), ".gif or .webp"),
        (("--out", "a.gif", "--frames", "0"), "frames is 0"),
        (("--out", "a.gif", "--seed", "-1"), "seed -1"),
        (("--out", "a.gif", "--sheet", "a.gif"), "must end with .png"),
    ],
)
def test_animate_refuses_wrong_options(folder, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FractalError, match=message):
        run(folder, "animate", "--classes", "1", *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["edit", "animate"])
def test_the_help_names_the_sampling_options(command):
    done = CliRunner().invoke(app, [command, "--help"])
    assert done.exit_code == 0
    assert "--guidance" in done.output
