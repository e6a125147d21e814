"""Animations: each frame shows the pixels so far, and the number of frames is limited."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from fractal_model.common.errors import FractalError
from fractal_model.config.sampling import SamplingConfig
from fractal_model.generation import animation
from fractal_model.generation.animation import animate
from fractal_model.generation.growth import GAP, OUTLINES
from fractal_model.generation.pictures import NOT_GENERATED
from fractal_model.sampling.sampler import Sampler
from tests.support import tiny_model

LABELS, SEEDS = torch.tensor([0, 3]), [4, 5]


def pictures(file):
    with Image.open(file) as opened:
        return [np.array(frame.convert("RGB")) for frame in ImageSequence.Iterator(opened)]


def hidden_pixels(frame) -> int:
    return int((frame == np.array(NOT_GENERATED)).all(-1).sum())


def test_frames_fill_up_and_end_with_the_samples(kind, tmp_path):
    model, settings = tiny_model(kind), SamplingConfig(guidance=2.0)
    file, sheet = animate(model, LABELS, SEEDS, settings, tmp_path / "new" / "growth.webp")
    frames = pictures(file)
    hidden = [hidden_pixels(frame) for frame in frames]
    side = model.config.image_size
    scale = (frames[0].shape[0] - 2 * GAP) // side
    assert hidden[0] > 0.8 * (side * scale) ** 2
    if kind != "guided":  # its outlines cover some hidden pixels
        assert hidden == sorted(hidden, reverse=True)
    assert hidden[-1] == 0
    middle = slice(GAP + scale // 2, GAP + side * scale, scale)
    expected = Sampler(model, settings)(LABELS, SEEDS)[0].permute(1, 2, 0).numpy()
    assert (frames[-1][middle, middle] == expected).all()
    assert sheet == tmp_path / "new" / "growth.png"
    assert hidden_pixels(pictures(sheet)[0]) > 0


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_the_number_of_frames_is_bounded(tmp_path, suffix):
    model = tiny_model("mar", patch_sizes=(8, 2, 1))
    for frames in (2, 7):
        file, _ = animate(
            model, LABELS, SEEDS, SamplingConfig(), tmp_path / f"a{suffix}", frames=frames
        )
        shown = pictures(file)
        assert len(shown) == frames
        assert hidden_pixels(shown[0]) > 0
        assert hidden_pixels(shown[-1]) == 0


def test_patches_being_generated_are_outlined_in_the_colour_of_their_level(tmp_path):
    model = tiny_model("guided")
    file, _ = animate(
        model, LABELS[:1], SEEDS[:1], SamplingConfig(iterations=(4, 4, 4)), tmp_path / "a.webp"
    )
    frames = np.stack(pictures(file))
    for colour in OUTLINES[:2]:
        has_colour = (frames == np.array(colour)).all(-1).any((1, 2))
        assert has_colour.any()
        assert not has_colour[0] and not has_colour[-1]


def test_large_images_have_fewer_frames(tmp_path, monkeypatch):
    model = tiny_model("mar", patch_sizes=(8, 2, 1))
    monkeypatch.setattr(animation, "MOST_BYTES", 10 * 2 * 4 * 8 * 8)
    file, _ = animate(model, LABELS, SEEDS, SamplingConfig(), tmp_path / "a.webp", frames=50)
    assert 5 <= len(pictures(file)) <= 11


def test_progress_ends_at_100_percent(tmp_path):
    done = []
    animate(
        tiny_model("ar"), LABELS, SEEDS, SamplingConfig(), tmp_path / "a.gif", progress=done.append
    )
    assert done == sorted(done)
    assert done[-1] == 100


def test_images_that_do_not_fit_the_memory_are_an_error(tmp_path, monkeypatch):
    def run_out_of_memory(*arguments, **options):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(Sampler, "__call__", run_out_of_memory)
    with pytest.raises(FractalError, match="2 images side by side do not fit into memory"):
        animate(tiny_model("ar"), LABELS, SEEDS, SamplingConfig(), tmp_path / "a.gif")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file": "growth.mp4"}, r"\.gif or \.webp"),
        ({"sheet": "growth.jpg"}, r"\.png"),
        ({"frames": 0}, "frames is 0: give a number from 2 to 300"),
        ({"frames": 301}, "frames is 301"),
        ({"labels": torch.zeros(17).long(), "seeds": range(17)}, "cannot show 17 images"),
    ],
)
def test_an_impossible_animation_is_refused_and_writes_nothing(tmp_path, changes, message):
    options = {"labels": LABELS, "seeds": SEEDS, "file": "a.gif", "sheet": "b.png", "frames": 5}
    options |= changes
    with pytest.raises(FractalError, match=message) as raised:
        animate(
            tiny_model("ar"),
            options["labels"],
            options["seeds"],
            SamplingConfig(),
            tmp_path / options["file"],
            sheet=tmp_path / options["sheet"],
            frames=options["frames"],
        )
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())
