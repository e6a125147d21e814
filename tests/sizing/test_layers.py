"""The proposed levels fit the images, and those of the shipped sizes are proposed again."""

from __future__ import annotations

from itertools import pairwise

import pytest

from fractal_model.common.errors import FractalError
from fractal_model.config.architecture import Architecture
from fractal_model.config.params import load_params
from fractal_model.sizing.choices import values
from fractal_model.sizing.layers import (
    LADDER,
    MOST_ON_A_SIDE,
    large_grid_note,
    propose_layers,
    propose_patch_sizes,
    reuse_layers,
)
from tests.support.params import SHIPPED

PARAMS = load_params(SHIPPED)


@pytest.mark.parametrize(
    ("side", "sizes"),
    [
        (2, (2, 1)),
        (4, (4, 2, 1)),
        (7, (7, 1)),
        (8, (8, 2, 1)),
        (9, (9, 3, 1)),
        (16, (16, 4, 1)),
        (28, (28, 4, 1)),
        (30, (30, 5, 1)),
        (32, (32, 4, 1)),
        (61, (61, 1)),
        (62, (62, 2, 1)),
        (64, (64, 4, 1)),
        (96, (96, 16, 4, 1)),
        (100, (100, 20, 4, 1)),
        (121, (121, 11, 1)),
        (128, (128, 16, 4, 1)),
        (224, (224, 16, 4, 1)),
        (256, (256, 16, 4, 1)),
        (512, (512, 64, 16, 4, 1)),
    ],
)
def test_levels_follow_the_factors_of_the_side(side, sizes):
    assert propose_patch_sizes(side) == sizes


@pytest.mark.parametrize("sides", [range(start, start + 64) for start in range(2, 514, 64)])
def test_every_side_has_valid_levels(sides):
    for side in sides:
        sizes = propose_patch_sizes(side)
        assert sizes[0] == side and sizes[-1] == 1
        assert all(above % below == 0 and above > below for above, below in pairwise(sizes))
        Architecture.model_validate(values(propose_layers(LADDER[0], side, 3, "mar"))).to_model()
        if not any(side % prime == 0 for prime in range(17, side + 1) if is_prime(prime)):
            assert sizes[0] // sizes[1] <= MOST_ON_A_SIDE


def is_prime(number: int) -> bool:
    return all(number % divisor for divisor in range(2, number))


def test_images_of_one_pixel_are_refused():
    with pytest.raises(FractalError, match="resolution of 2 or more"):
        propose_patch_sizes(1)


@pytest.mark.parametrize(
    ("rung", "size"),
    [
        (LADDER[0], "digits"),
        (LADDER[0], "digits-nll"),
        (LADDER[-1], "mar-64"),
        (LADDER[-1], "ar-64"),
    ],
)
def test_the_ends_of_the_ladder_are_shipped_sizes(rung, size):
    row = PARAMS.models[size]
    entry = propose_layers(rung, row.patch_sizes[0], row.num_classes, row.generators[0])
    assert Architecture.model_validate(values(entry)) == row


@pytest.mark.parametrize("rung", LADDER, ids=lambda rung: str(rung.width))
@pytest.mark.parametrize("side", [7, 8, 64, 256, 512])
@pytest.mark.parametrize("generator", ["ar", "mar"])
def test_every_rung_fits_every_number_of_levels(rung, side, generator):
    Architecture.model_validate(values(propose_layers(rung, side, 7, generator))).to_model()


def test_a_size_is_reused_for_other_classes():
    entry = reuse_layers("mar-b", PARAMS.models["mar-b"], 256, 5)
    again = Architecture.model_validate(values(entry))
    assert again == PARAMS.models["mar-b"].model_copy(update={"num_classes": 5})
    with pytest.raises(FractalError, match="mar-b is for images of 256 px, .* 64 px: choose"):
        reuse_layers("mar-b", PARAMS.models["mar-b"], 64, 5)


@pytest.mark.parametrize(("side", "is_noted"), [(61, True), (67, True), (64, False), (7, False)])
def test_a_level_with_very_many_patches_is_noted(side, is_noted):
    note = large_grid_note(propose_layers(LADDER[0], side, 3, "mar"))
    assert (note is not None) == is_noted
    assert note is None or "images of 64 px would be much faster" in note
