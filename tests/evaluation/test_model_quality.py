"""What is measured during training: fixed images, masks, classes and seeds."""

import pytest
import torch

from fractal_model.config.validation import ValidationConfig
from fractal_model.data.prepared import PreparedSplit, open_prepared
from fractal_model.evaluation.model_quality import draw_grid, measure_held_out
from fractal_model.parallel.parts import map_in_this_process
from tests.support import tiny_model
from tests.support.disturbed_runs import save_training_images
from tests.support.recipes import SAMPLING

SETTINGS = ValidationConfig(images=6, passes=3, grid_classes=2, grid_columns=3)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory) -> PreparedSplit:
    return open_prepared(
        save_training_images(tmp_path_factory.mktemp("data") / "tiny"), "validation"
    )


def one_at_a_time(start, total: int, *, largest: int):
    return map_in_this_process(start, total, largest=1)


def test_the_same_weights_have_the_same_likelihood(held_out):
    model = tiny_model("mar")
    first, again = (measure_held_out(model, held_out, SETTINGS) for _ in range(2))
    assert first.per_pass.shape == (6, 3)
    assert first.per_pass.equal(again.per_pass)
    alone = measure_held_out(model, held_out, SETTINGS, map_parts=one_at_a_time)
    torch.testing.assert_close(alone.per_pass, first.per_pass, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", [1, 2])
def test_another_seed_has_other_masks(held_out, seed):
    model = tiny_model("mar")
    other = SETTINGS.model_copy(update={"seed": seed, "images": 8})
    fixed = SETTINGS.model_copy(update={"images": 8})
    means = [measure_held_out(model, held_out, each).mean for each in (fixed, other)]
    assert means[0] != means[1]


def test_a_grid_is_the_same_each_time():
    model = tiny_model("mar")
    grids = [draw_grid(model, SAMPLING, SETTINGS) for _ in range(2)]
    assert grids[0].equal(grids[1])
    assert grids[0].equal(draw_grid(model, SAMPLING, SETTINGS, map_parts=one_at_a_time))
