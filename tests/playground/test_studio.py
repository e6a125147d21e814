"""The studio draws, edits and examines as the pipeline does, with one model in memory."""

from __future__ import annotations

import gc
import shutil
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from fractal_model.common.errors import FractalError
from fractal_model.config.sampling import SamplingConfig
from fractal_model.config.serving import ServingConfig
from fractal_model.generation.growth import Growth
from fractal_model.model.fractal import NO_CLASS
from fractal_model.pipeline.fractal_pipeline import FractalPipeline
from fractal_model.playground import growing
from fractal_model.playground import studio as module
from fractal_model.playground.studio import Studio, Wishes
from tests.support import random_images, tiny_model


def pipeline(source: str) -> FractalPipeline:
    pipe = FractalPipeline.from_pretrained(source, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def wishes(studio) -> Wishes:
    return Wishes(studio.sources[0], 1, images=2, seed=5, guidance=3.0, logit_scale=1.2)


def test_a_model_is_described(studio):
    first, second = (studio.facts(source) for source in studio.sources)
    assert first.classes == (("cat", 0), ("dog", 1), ("cow", 2), ("ant", 3), ("no class", NO_CLASS))
    assert second.classes[:2] == (("0", 0), ("1", 1))
    assert (first.iterations, first.sampling.guidance, first.side) == ("3, 2", 2.0, 4)


def test_the_last_frame_has_the_images_of_the_pipeline(studio, wishes):
    frames = list(studio.draw(replace(wishes, iterations="4, 1")))
    settings = {"guidance": 3.0, "logit_scale": 1.2, "iterations": (4, 1)}
    expected = pipeline(wishes.model)(["dog"] * 2, seed=5, output_type="pt", **settings)
    assert frames[-1].is_finished and frames[-1].images.equal(expected)
    assert all(frame.picture.size == frames[-1].picture.size for frame in frames)


def test_an_edit_keeps_the_known_pixels_in_every_frame(studio, wishes):
    (image,) = random_images(1, 4)
    kept = torch.ones(4, 4, dtype=torch.bool)
    kept[1:3, 1:] = False
    frames = list(studio.edit(wishes, image, kept))
    for frame in frames:
        assert (frame.images[:, :, kept] == image[:, kept]).all()
    pipe = pipeline(wishes.model)
    settings = {"guidance": 3.0, "logit_scale": 1.2}
    expected = pipe.edit(
        image, ~kept, ["dog"], num_images_per_class=2, seed=5, output_type="pt", **settings
    )
    assert frames[-1].images.equal(expected)


def test_the_surprise_is_that_of_the_pipeline(studio):
    (image,) = random_images(1, 4)
    for source, is_exact in zip(studio.sources, (False, True), strict=True):
        found = studio.examine(source, image, 2)
        expected = pipeline(source).pixel_bits([image], [2], passes=module.PASSES)
        assert np.array_equal(found.bits, expected[0], equal_nan=True)
        assert found.is_exact is is_exact


def test_only_one_model_is_in_memory(studio, monkeypatch):
    alive: list[weakref.ref] = []

    def load(source, outputs):
        gc.collect()
        assert not any(model() is not None for model in alive)
        model = module_load(source, outputs)
        alive.append(weakref.ref(model))
        return model

    module_load = module.load_model
    monkeypatch.setattr(module, "load_model", load)
    for source in (0, 1, 1, 0):
        studio.facts(studio.sources[source])
    assert len(alive) == 3


def test_a_closed_drawing_ends_at_its_next_step_and_lets_others_draw(studio, wishes, monkeypatch):
    moments, go = [], threading.Event()

    class SlowGrowth(Growth):
        def __call__(self, *state):
            moments.append(state[0])
            assert len(moments) < 3 or go.wait(60)
            super().__call__(*state)

    monkeypatch.setattr(growing, "Growth", SlowGrowth)
    frames = studio.draw(replace(wishes, images=1, iterations="4, 4"))
    next(frames)
    frames.close()
    go.set()
    assert list(studio.draw(replace(wishes, images=1, iterations="1, 1")))[-1].is_finished
    assert moments.count(1) < 4 * 4  # the first drawing was not finished


def test_drawings_wait_for_each_other(studio, wishes):
    first = studio.draw(wishes)
    next(first)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(lambda: [*studio.draw(wishes)][-1])
        images = [*first][-1].images
        assert second.result(60).images.equal(images)


def test_too_little_memory_is_explained(studio, wishes, monkeypatch):
    class Sampler:
        def __init__(self, *settings):
            raise MemoryError

    monkeypatch.setattr(growing, "Sampler", Sampler)
    with pytest.raises(FractalError, match="2 images do not fit into memory: ask for fewer"):
        list(studio.draw(wishes))


def test_a_guide_is_loaded_with_its_model(exported, tmp_path):
    weak = tiny_model("mar", widths=(8, 8, 4))
    weak.save_pretrained(tmp_path / "weak")
    model = tiny_model("mar")
    sampling = SamplingConfig(guidance=3.0, guide=str(tmp_path / "weak"))
    model.serving = ServingConfig(weights="model", sampling=sampling)
    studio = Studio([str(tmp_path / "guided")], None)
    model.save_pretrained(tmp_path / "guided")
    wishes = Wishes(studio.sources[0], 1, guidance=3.0)
    drawn = [*studio.draw(wishes)][-1].images
    shutil.rmtree(tmp_path / "weak")
    assert [*studio.draw(wishes)][-1].images.equal(drawn)  # it is in memory


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 17}, "17 images asked for: give 1 … 16"),
        ({"seed": -1}, "seed -1 with 2 images is out of range"),
        ({"guidance": 2000.0}, "allowed: guidance 0 … 1000"),
        ({"logit_scale": 0.0}, "allowed: logit scale above 0"),
        ({"iterations": "3"}, "iterations: '3' has 1 number, expected 2"),
        ({"iterations": "a, b"}, "iterations: found 'a, b', expected whole numbers"),
        ({"iterations": "0, 1"}, "allowed: iterations 1 or more"),
        ({"label": 9}, "does not know class 9: choose 0 … 3, or no class"),
        ({"model": "/etc"}, "the model '/etc' is not offered: choose one of the list"),
    ],
)
def test_a_wish_that_is_not_allowed_is_explained(studio, wishes, changes, message):
    with pytest.raises(FractalError, match=message):
        list(studio.draw(replace(wishes, **changes)))
    assert list(studio.draw(wishes))[-1].is_finished  # the lock is free


def test_nothing_to_generate_is_explained(studio, wishes):
    kept = torch.ones(4, 4, dtype=torch.bool)
    with pytest.raises(FractalError, match="nothing is left to generate"):
        list(studio.edit(wishes, random_images(1, 4)[0], kept))
