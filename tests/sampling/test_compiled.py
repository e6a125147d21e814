"""Compiled sampling gives the same images as uncompiled sampling, in a batch of any size."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fractal_model.common.compiler import has_compiler
from fractal_model.common.errors import FractalError
from fractal_model.config.sampling import SamplingConfig
from fractal_model.model.ar import ARLevel
from fractal_model.model.fractal import Guide
from fractal_model.sampling import compiled
from fractal_model.sampling.known import KnownPixels
from fractal_model.sampling.sampler import Sampler
from fractal_model.sampling.steps import cached_level_steps
from tests.support import random_images, tiny_model

LABELS = torch.tensor([0, 1, 2, 3, 1])
SEEDS = [11, 12, 13, 14, 15]
needs_compiler = pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler")


def settings(**changes) -> SamplingConfig:
    return SamplingConfig(guidance=3.0, logit_scale=1.1, **changes)


@needs_compiler
@pytest.mark.parametrize(("kind", "qk_norm"), [("ar", False), ("mar", False), ("ar", True)])
def test_compiled_gives_the_images_of_the_uncached_path(kind, qk_norm):
    model = tiny_model(kind, qk_norm=qk_norm)
    fast = Sampler(model, settings(compile=True))
    slow = Sampler(model, settings(), cached=False)
    assert fast(LABELS, SEEDS).equal(slow(LABELS, SEEDS))


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ar", "mar", "mar above ar", "ar above mar"])
@pytest.mark.parametrize("guide", [None, "weaker"])
def test_an_interval_of_guidance_and_a_guide_give_the_uncompiled_images(kind, guide):
    model = tiny_model(kind)
    model.guide = Guide(tiny_model(kind, widths=(8, 8, 4), heads=(2, 2, 1)), "")
    changes = {"guidance_interval": (0.3, 0.7), "guide": guide}
    images = Sampler(model, settings(compile=True, **changes))(LABELS, SEEDS)
    assert images.equal(Sampler(model, settings(**changes), cached=False)(LABELS, SEEDS))


@needs_compiler
@pytest.mark.slow
def test_each_model_has_its_own_compiled_code():
    """Code that was compiled for an earlier model with the same shapes is not used again."""
    deeper_model = tiny_model("ar", blocks=(2, 1, 2))
    Sampler(tiny_model("ar"), settings(compile=True))(LABELS, SEEDS)
    images = Sampler(deeper_model, settings(compile=True))(LABELS, SEEDS)
    assert images.equal(Sampler(deeper_model, settings())(LABELS, SEEDS))


@needs_compiler
def test_an_observer_changes_nothing():
    """It also sees the innermost level's steps, which are not compiled for it."""
    sampler, levels = Sampler(tiny_model("ar"), settings(compile=True)), []
    observed = sampler(LABELS, SEEDS, observe=lambda level, *_: levels.append(level))
    assert observed.equal(sampler(LABELS, SEEDS)) and set(levels) == {0, 1}


@needs_compiler
@pytest.mark.parametrize(
    ("widest", "dtype", "lengths"),
    [(16, None, [0, 1, 2]), (15, None, []), (16, torch.bfloat16, [])],
)
def test_steps_are_compiled_except_the_last_wide_levels_and_bfloat16(
    monkeypatch, widest, dtype, lengths
):
    """The level has four steps and is 16 wide."""
    monkeypatch.setattr(compiled, "_WIDEST", widest)
    model = tiny_model("ar")
    step, compiled_lengths = compiled.CompiledSteps(model.levels), []

    def compiled_step(level, token, caches):
        compiled_lengths.append(caches[0].length)
        return ARLevel.step(level, token, caches)

    monkeypatch.setattr(step, "_step", compiled_step)
    steps = cached_level_steps(model.levels[0], model.root(LABELS), step)
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is not None):
        for t in range(4):
            steps(torch.zeros(5, 4, 3, 2, 2, dtype=torch.uint8), t, 1)
    assert compiled_lengths == lengths


@needs_compiler
def test_a_level_that_is_not_listed_takes_uncompiled_steps(monkeypatch):
    model = tiny_model("ar")
    step = compiled.CompiledSteps(model.levels[:1])
    monkeypatch.setattr(step, "_step", lambda *_: pytest.fail("this level is not compiled"))
    steps = cached_level_steps(model.levels[1], model.root(LABELS), step)
    with torch.no_grad():
        steps(torch.zeros(5, 4, 3, 1, 1, dtype=torch.uint8), 0, 1)


@needs_compiler
def test_the_level_above_the_innermost_takes_compiled_steps(monkeypatch):
    lengths, step = [], compiled.CompiledSteps.__call__

    def observed_step(self, level, token, caches):
        lengths.append(caches[0].length)
        return step(self, level, token, caches)

    monkeypatch.setattr(compiled.CompiledSteps, "__call__", observed_step)
    Sampler(tiny_model("ar"), settings(compile=True))(LABELS, SEEDS)
    assert lengths == [0, 1, 2, 3]


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("ar above mar", {}),
        ("ar", {"patch_sizes": (4, 1), "generators": ("ar",)}),
        ("ar", {"patch_sizes": (6, 3, 1)}),
        (
            "ar",
            {
                "patch_sizes": (8, 4, 2, 1),
                "generators": ("ar", "ar", "ar"),
                "widths": (16, 32, 16, 8),
                "blocks": (2, 2, 1, 1),
            },
        ),
    ],
    ids=["ar above mar", "one level", "an odd number of tokens", "three levels"],
)
def test_other_architectures_give_the_uncompiled_images(kind, changes):
    model = tiny_model(kind, **changes)
    fast, plain = Sampler(model, settings(compile=True)), Sampler(model, settings())
    assert fast(LABELS, SEEDS).equal(plain(LABELS, SEEDS))


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mar above ar", "mar"])
def test_any_number_of_rows_gives_the_uncompiled_images(kind):
    """Below a MAR level the number changes from iteration to iteration."""
    model = tiny_model(kind)
    fast, plain = Sampler(model, settings(compile=True)), Sampler(model, settings())
    for count in range(1, 12):
        labels, seeds = torch.arange(count) % 4, range(count)
        assert fast(labels, seeds).equal(plain(labels, seeds))


@pytest.fixture
def compiler_reset() -> Iterator[None]:
    """After the test, torch forgets its compiled code and that it has stopped compiling."""
    yield
    torch.compiler.reset()


@needs_compiler
@pytest.mark.slow
def test_beyond_the_limit_sampling_continues_uncompiled(monkeypatch, compiler_reset):
    monkeypatch.setattr(compiled, "_RECOMPILE_LIMIT", 1)
    model = tiny_model("ar")
    fast, plain = Sampler(model, settings(compile=True)), Sampler(model, settings())
    for count in (5, 3, 1):
        assert fast(LABELS[:count], SEEDS[:count]).equal(plain(LABELS[:count], SEEDS[:count]))


@needs_compiler
@pytest.mark.parametrize("kind", ["ar", "mar"])
def test_known_pixels_give_the_uncompiled_images(kind):
    """An innermost AR level with known pixels is not compiled."""
    model, mask = tiny_model(kind), torch.zeros(5, 4, 4, dtype=torch.bool)
    mask[:, 2:] = True
    known = KnownPixels(random_images(5, size=4), mask)
    images = Sampler(model, settings(compile=True))(LABELS, SEEDS, known=known)
    assert images.equal(Sampler(model, settings())(LABELS, SEEDS, known=known))


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
def test_bfloat16_gives_the_same_image_in_any_batch(kind):
    """Except for close draws, the images equal the uncompiled ones."""
    model = tiny_model(kind)
    fast, plain = Sampler(model, settings(compile=True)), Sampler(model, settings())
    with torch.autocast("cpu", torch.bfloat16):
        images, expected = fast(LABELS, SEEDS), plain(LABELS, SEEDS)
        assert images[:1].equal(fast(LABELS[:1], SEEDS[:1]))
    assert (images != expected).float().mean() < 0.1


def test_a_missing_compiler_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(FractalError, match="is not on the PATH: install a C.. compiler"):
        Sampler(tiny_model("ar"), settings(compile=True))
