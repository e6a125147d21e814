"""Generation orders: which patch comes when, and orders that do not fit a model."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from fractal_model.common.errors import FractalError
from fractal_model.config.sampling import SamplingConfig
from fractal_model.model.fractal import FractalModel
from fractal_model.sampling.orders import halton_order
from fractal_model.sampling.sampler import Sampler
from tests.support import tiny_model

LABELS, SEEDS = torch.tensor([0, 1, 2]), [11, 12, 13]


def order_seen(model: FractalModel, settings: SamplingConfig, seeds=SEEDS) -> torch.Tensor:
    """Return the numbers (B, T) of the first level's patches in the order of generation."""
    generated = []

    def observe(level, rows, hidden, canvas):
        if level == 0:
            generated.append(~hidden)

    Sampler(model, settings)(LABELS[: len(seeds)], seeds, observe=observe)
    return torch.stack(generated).sum(0).argsort(1, descending=True)


@pytest.fixture(scope="module")
def model():
    return tiny_model("mar", patch_sizes=(8, 2, 1))


def test_raster_order_goes_row_by_row(model):
    assert order_seen(model, SamplingConfig(order="raster")).tolist() == [list(range(16))] * 3


def test_centre_out_goes_by_rings_and_breaks_ties_by_seed(model):
    orders = order_seen(model, SamplingConfig(order="centre-out"))
    rings = [{5, 6, 9, 10}, {1, 2, 4, 7, 8, 11, 13, 14}, {0, 3, 12, 15}]
    for row in orders.tolist():
        assert [set(row[:4]), set(row[4:12]), set(row[12:])] == rings
    assert not orders[0].equal(orders[1])
    alone = order_seen(model, SamplingConfig(order="centre-out"), SEEDS[:1])
    assert orders[0].equal(alone[0])


def test_halton_order_is_that_of_the_sequence(model):
    """The points (row, column) are (1/2, 1/3), (1/4, 2/3), (3/4, 1/9), (1/8, 4/9), (5/8, 7/9), …"""
    orders = order_seen(model, SamplingConfig(order="halton")).tolist()
    assert orders == [list(halton_order(4))] * 3
    assert orders[0][:5] == [2 * 4 + 1, 1 * 4 + 2, 3 * 4 + 0, 0 * 4 + 1, 2 * 4 + 3]


@pytest.mark.parametrize("grid", [1, 2, 3, 16, 27])
def test_halton_order_has_each_patch_once(grid):
    assert sorted(halton_order(grid)) == list(range(grid**2))


def test_the_first_patches_of_halton_order_are_spread_evenly():
    """Each quarter of the image has about 4 of the first 16 patches."""
    quarters = [(number // 16 // 8, number % 16 // 8) for number in halton_order(16)[:16]]
    assert all(3 <= quarters.count((row, column)) <= 5 for row in (0, 1) for column in (0, 1))


def test_a_given_order_is_kept(model):
    order = tuple(torch.randperm(16, generator=torch.Generator().manual_seed(3)).tolist())
    assert order_seen(model, SamplingConfig(order=order)).tolist() == [list(order)] * 3


def test_each_seed_has_its_own_random_order(model):
    orders = order_seen(model, SamplingConfig())
    assert len({tuple(row) for row in orders.tolist()}) == 3


def test_the_same_image_in_any_batch_in_any_order(model):
    for order in ("raster", "centre-out", "halton", tuple(reversed(range(16)))):
        sampler = Sampler(model, SamplingConfig(guidance=2.0, iterations=(5, 3), order=order))
        together = sampler(LABELS, SEEDS)
        assert together[1:2].equal(sampler(LABELS[1:2], SEEDS[1:2]))
        assert not together.equal(Sampler(model, SamplingConfig(iterations=(5, 3)))(LABELS, SEEDS))


def test_an_ar_model_generates_in_raster_order_only():
    model = tiny_model("ar")
    plain = Sampler(model, SamplingConfig())(LABELS, SEEDS)
    assert plain.equal(Sampler(model, SamplingConfig(order="raster"))(LABELS, SEEDS))
    for order in ("centre-out", "halton", (0, 1, 2, 3)):
        with pytest.raises(FractalError, match="raster"):
            Sampler(model, SamplingConfig(order=order))


@pytest.mark.parametrize(
    ("order", "named"),
    [
        ((0, 1, 2), "its length is 3; give each of this model's 4"),
        ((0, 1, 2, 4), "4 is out of range"),
        ((0, 1, 1, 2), "it repeats 1"),
    ],
)
def test_given_orders_that_do_not_fit_are_an_error(order, named):
    with pytest.raises(FractalError, match=named) as raised:
        Sampler(tiny_model("mar"), SamplingConfig(order=order))
    assert "\n" not in str(raised.value)


def test_a_patch_number_below_0_is_an_error():
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        SamplingConfig(order=(0, 1, -1, 2))


def test_an_unknown_order_is_an_error():
    with pytest.raises(ValidationError, match="'random', 'raster', 'centre-out' or 'halton'"):
        SamplingConfig(order="spiral")
