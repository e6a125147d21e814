"""The one-line description of how weights differ from those of a model."""

from __future__ import annotations

import torch

from fractal_model.model.weights import differences


def weights(*names: str, width: int = 2) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(3, width) for name in names}


def test_weights_that_fit_have_no_differences():
    assert differences(weights("a", "b"), weights("b", "a")) == ""


def test_the_first_three_of_each_kind_are_named():
    expected = weights("a", "b", "c", "d") | weights("same") | weights("wide", width=5)
    actual = weights("wide", "same", "x", "y", "z")
    assert differences(expected, actual) == (
        "4 missing (a, b, c, …); 3 extra (x, y, z); 1 of another shape (wide [3, 2] instead of "
        "[3, 5])"
    )
