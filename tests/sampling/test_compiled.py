"""Compiled AR levels, and pixels: the same images, and alone the same as together."""

from __future__ import annotations

import pytest
import torch

from fractal_model.compiler import compiler_is_there
from fractal_model.errors import FractalError
from fractal_model.model.fractal import FractalModel, initialise
from fractal_model.sampling import compiled
from fractal_model.sampling.known import Known
from fractal_model.sampling.sampler import Sampler
from fractal_model.sampling.settings import SamplingConfig
from tests.conftest import random_images, tiny_model

LABELS = torch.tensor([0, 1, 2, 3, 1])
SEEDS = [11, 12, 13, 14, 15]
needs_compiler = pytest.mark.skipif(not compiler_is_there(), reason="there is no C++ compiler")


def settings(**changes) -> SamplingConfig:
    return SamplingConfig(guidance=3.0, logit_scale=1.1, **changes)


@needs_compiler
@pytest.mark.parametrize("kind", ["ar", "mar"])
def test_compiled_gives_the_images_of_the_uncached_path(kind):
    model = tiny_model(kind)
    fast = Sampler(model, settings(compile=True))
    slow = Sampler(model, settings(), cached=False)
    assert fast(LABELS, SEEDS).equal(slow(LABELS, SEEDS))


@needs_compiler
def test_each_model_has_its_own_code():
    """Not that of another model before it whose shapes are the same."""
    config = tiny_model("ar").config
    pixel = config.pixel.model_copy(update={"blocks": config.pixel.blocks + 1})
    deeper = FractalModel(config.model_copy(update={"pixel": pixel})).eval()
    initialise(deeper, torch.Generator().manual_seed(3))
    Sampler(tiny_model("ar"), settings(compile=True))(LABELS, SEEDS)
    found = Sampler(deeper, settings(compile=True))(LABELS, SEEDS)
    assert found.equal(Sampler(deeper, settings())(LABELS, SEEDS))


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mar above ar", "mar"])
def test_any_number_of_rows(kind):
    """Below a MAR level it changes from iteration to iteration."""
    model = tiny_model(kind)
    fast, plain = Sampler(model, settings(compile=True)), Sampler(model, settings())
    for count in range(1, 12):
        labels, seeds = torch.arange(count) % 4, range(count)
        assert fast(labels, seeds).equal(plain(labels, seeds))


@needs_compiler
@pytest.mark.slow
def test_past_the_limit_it_goes_on_without_compiling(monkeypatch):
    monkeypatch.setattr(compiled, "_MOST_PIECES", 1)
    model = tiny_model("ar")
    fast, plain = Sampler(model, settings(compile=True)), Sampler(model, settings())
    for count in (5, 3, 1):
        assert fast(LABELS[:count], SEEDS[:count]).equal(plain(LABELS[:count], SEEDS[:count]))


@needs_compiler
@pytest.mark.parametrize("kind", ["ar", "mar"])
def test_known_pixels(kind):
    """An AR level that has some takes the way that is not compiled."""
    model, images = tiny_model(kind), random_images(5, size=4)
    known = torch.zeros(5, 4, 4, dtype=torch.bool)
    known[:, 2:] = True
    found = Sampler(model, settings(compile=True))(LABELS, SEEDS, known=Known(images, known))
    expected = Sampler(model, settings())(LABELS, SEEDS, known=Known(images, known))
    assert found.equal(expected)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ar", "mar"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_seed_gives_the_same_image_in_any_batch(kind, guidance):
    sampler = Sampler(tiny_model(kind), SamplingConfig(guidance=guidance, compile=True))
    together = sampler(LABELS, SEEDS)
    assert together[:1].equal(sampler(LABELS[:1], SEEDS[:1]))
    assert together[2:].equal(sampler(LABELS[2:], SEEDS[2:]))


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ar", "mar"])
def test_in_bfloat16(kind):
    """Alone as together, and but for close draws what is not compiled."""
    model = tiny_model(kind)
    fast, plain = Sampler(model, settings(compile=True)), Sampler(model, settings())
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = fast(LABELS, SEEDS), plain(LABELS, SEEDS)
        assert found[:1].equal(fast(LABELS[:1], SEEDS[:1]))
    assert (found != expected).float().mean() < 0.1


def test_without_a_compiler_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(FractalError, match="is not on the PATH: install a C.. compiler"):
        Sampler(tiny_model("ar"), settings(compile=True))
