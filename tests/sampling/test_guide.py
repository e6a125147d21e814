"""Autoguidance: a guide of other widths walks through the levels together with the model."""

from __future__ import annotations

import pytest
import torch

from fractal_model.common.errors import FractalError
from fractal_model.config.sampling import SamplingConfig
from fractal_model.model.fractal import NO_CLASS, FractalModel, Guide, initialise
from fractal_model.model.weights import weights_checksum
from fractal_model.sampling.guide import pin_guide, require_guide
from fractal_model.sampling.known import KnownPixels
from fractal_model.sampling.sampler import Sampler
from tests.support import images_for, tiny_config, tiny_model

LABELS, SEEDS = torch.tensor([0, 1, 2]), [11, 12, 13]
GUIDED = SamplingConfig(guidance=3.0, guide="weaker")


def guided_model(kind: str, guide: FractalModel | None = None) -> FractalModel:
    """A model with two blocks a level and a guide that is narrower, with one block a level."""
    levels = len(tiny_config(kind).levels)
    model = tiny_model(kind, blocks=(2,) * (levels + 1))
    if guide is None:
        guide = tiny_model(kind, widths=(8,) * levels + (4,), heads=(2,) * levels + (1,))
    model.guide = Guide(guide, weights_checksum(guide))
    return model


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.7)])
def test_cached_equals_uncached(kind, interval):
    model = guided_model(kind)
    settings = GUIDED.model_copy(update={"guidance_interval": interval})
    fast = Sampler(model, settings)(LABELS, SEEDS)
    assert fast.equal(Sampler(model, settings, cached=False)(LABELS, SEEDS))
    assert not fast.equal(Sampler(model, SamplingConfig(guidance=3.0))(LABELS, SEEDS))


def test_cached_equals_uncached_with_known_pixels(kind):
    model = guided_model(kind)
    images = images_for(model, 3)
    mask = torch.rand(3, *images.shape[2:], generator=torch.Generator().manual_seed(3)) < 0.4
    known = KnownPixels(images, mask)
    fast = Sampler(model, GUIDED)(LABELS, SEEDS, known=known)
    assert fast.equal(Sampler(model, GUIDED, cached=False)(LABELS, SEEDS, known=known))


def test_a_seed_gives_the_same_image_in_any_batch(kind):
    sampler = Sampler(guided_model(kind), GUIDED)
    together = sampler(LABELS, SEEDS)
    assert together[1:3].equal(sampler(LABELS[1:3], SEEDS[1:3]))


def test_the_model_as_its_own_guide_changes_nothing(kind):
    """model + guidance · (model − model) are the model's logits."""
    model = guided_model(kind, guide=None)
    plain = Sampler(model, SamplingConfig())(LABELS, SEEDS)
    model.guide = Guide(model, "")
    assert Sampler(model, GUIDED)(LABELS, SEEDS).equal(plain)


def test_guidance_1_and_steps_outside_the_interval_do_not_run_the_guide(kind, monkeypatch):
    model, rows = guided_model(kind), []
    guide = model.guide.model.pixel
    network = type(guide)
    first_token = network.first_token

    def count(self, conditions):
        rows.append(len(conditions) if self is guide else 0)
        return first_token(self, conditions)

    monkeypatch.setattr(network, "first_token", count)
    pixels = len(LABELS) * model.config.image_size**2
    for changes, expected in (
        ({"guidance": 1.0}, 0),
        ({"guidance_interval": (0.01, 0.02)}, 0),
        ({"guidance_interval": (0.6, 1.0)}, pixels / 2),
        ({}, pixels),
    ):
        rows.clear()
        Sampler(model, GUIDED.model_copy(update=changes))(LABELS, SEEDS)
        assert sum(rows) == expected


def test_images_without_a_class_are_guided_too():
    model, null = guided_model("mar"), torch.full((2,), NO_CLASS)
    plain = Sampler(model, SamplingConfig())(null, [1, 2])
    assert not plain.equal(Sampler(model, GUIDED)(null, [1, 2]))


def test_the_guide_is_no_part_of_the_weights():
    model, guided = tiny_model("ar"), tiny_model("ar")
    guided.guide = Guide(tiny_model("ar", widths=(8, 8, 4)), "")
    assert weights_checksum(guided) == weights_checksum(model)


def test_a_guide_is_pinned_by_its_weights():
    model = guided_model("ar")
    other = tiny_model("ar")
    initialise(other, torch.Generator().manual_seed(5))
    pinned = pin_guide(GUIDED, model.guide)
    assert pinned.guide == f"sha256:{model.guide.checksum}"
    assert pinned == pin_guide(GUIDED.model_copy(update={"guide": "moved"}), model.guide)
    assert pinned != pin_guide(GUIDED, Guide(other, weights_checksum(other)))
    assert pin_guide(SamplingConfig(), None) == SamplingConfig()


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        ("ar", {"patch_sizes": (8, 2, 1)}, "image size is 8, the model's is 4"),
        (
            "ar",
            {"patch_sizes": (4, 1), "generators": ("ar",)},
            r"list of patch sizes is \[4\], the model's is \[4, 2\]",
        ),
        ("ar above mar", {}, r"list of generators is \['ar', 'mar'\]"),
        ("ar", {"num_classes": 5}, "number of classes is 5, the model's is 4"),
    ],
)
def test_a_guide_of_other_patches_or_classes_is_an_error(kind, changes, named):
    with pytest.raises(FractalError, match=named) as raised:
        require_guide(tiny_config(kind, **changes), tiny_config("ar"))
    assert "\n" not in str(raised.value)


def test_a_guide_of_other_class_names_is_an_error():
    names = {"class_names": ("a", "b", "c", "d")}
    model, guide = tiny_config("ar").model_copy(update=names), tiny_config("ar")
    require_guide(guide, model)
    other = guide.model_copy(update={"class_names": ("a", "b", "d", "c")})
    with pytest.raises(FractalError, match="other class names"):
        require_guide(other, model)


def test_settings_with_a_guide_need_it_at_the_model():
    with pytest.raises(FractalError, match="have the guide weaker, but the model was loaded"):
        Sampler(tiny_model("ar"), GUIDED)
