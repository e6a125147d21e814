"""The terms of a likelihood: colours and guiding pixels."""

from __future__ import annotations

import pytest
import torch

import fractal_model.evaluation.measure_likelihood as likelihood_module
from fractal_model.data.prepared import open_prepared
from fractal_model.evaluation.measure_likelihood import likelihood_by_level, measure_likelihood
from tests.support import tiny_model
from tests.support.tiny_files import save_images


@pytest.mark.parametrize(
    ("kind", "side", "names"),
    [
        ("mar", 4, {"red", "green", "blue"}),
        ("ar", 4, {"red", "green", "blue"}),
        (
            "guided",
            8,
            {
                "red",
                "green",
                "blue",
                "guiding pixels of 4 px patches",
                "guiding pixels of 2 px patches",
            },
        ),
    ],
)
def test_the_terms_add_up_to_the_likelihood(kind, side, names, tmp_path):
    split = open_prepared(save_images(tmp_path / "noise", size=side), "validation")
    model = tiny_model(kind)
    terms = likelihood_by_level(model, split, passes=2, seed=3)
    whole = measure_likelihood(model, split, lambda done: None, passes=2, seed=3)
    assert terms.keys() == names and all(bits > 0 for bits in terms.values())
    assert sum(terms.values()) == pytest.approx(whole.mean, rel=1e-6)


def test_a_part_that_does_not_fit_the_memory_is_split(tmp_path, monkeypatch):
    split = open_prepared(save_images(tmp_path / "noise"), "validation")
    expected = likelihood_by_level(tiny_model("mar"), split, passes=1, seed=3)
    original = likelihood_module.pass_bits_by_term

    def compute_at_most_two(model, images, *arguments, **options):
        if len(images) > 2:
            raise torch.OutOfMemoryError
        return original(model, images, *arguments, **options)

    monkeypatch.setattr(likelihood_module, "pass_bits_by_term", compute_at_most_two)
    terms = likelihood_by_level(tiny_model("mar"), split, passes=1, seed=3)
    assert terms == pytest.approx(expected)
