"""A row's product is the same, bit by bit, however many rows stand beside it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fractal_model.model.likelihood import mask_seeds, pass_bits
from fractal_model.model.rows import rowwise
from tests.conftest import images_for, tiny_model

SHAPES = [(16, 16), (48, 16), (12, 128), (128, 32), (512, 128), (128, 512), (64, 192)]


@pytest.fixture(params=[1, 2, 4])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize(("width", "out"), SHAPES)
def test_few_rows_are_as_they_are_among_many(threads, width, out):
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(width, out)
    nn.init.normal_(layer.weight, generator=generator)
    x = torch.randn(600, width, generator=generator)
    with torch.no_grad():
        whole = layer(x)
        for rows in (*range(1, 40), 64, 65, 100, 257, 599):
            assert rowwise(layer, x[:rows].clone(), out).equal(whole[:rows]), rows


def test_any_leading_shape():
    layer, x = nn.Linear(6, 4), torch.randn(1, 3, 1, 6)
    with torch.no_grad():
        assert torch.allclose(rowwise(layer, x, 4), layer(x))
        assert rowwise(layer, x, 4).shape == (1, 3, 1, 4)


def test_training_computes_nothing_more():
    seen = []
    rowwise(lambda x: seen.append(len(x)) or x, torch.ones(1, 5, requires_grad=True), 5)
    with torch.no_grad():
        rowwise(lambda x: seen.append(len(x)) or x, torch.ones(1, 5), 500)
    assert seen == [1, 4]


def test_a_likelihood_is_the_same_in_any_batch(kind, threads):
    model = tiny_model(kind)
    images, labels = images_for(model, 5), torch.tensor([0, -1, 2, 3, -1])
    seeds = mask_seeds(0, range(5))
    together = pass_bits(model, images, seeds, passes=3, labels=labels)
    for i in range(5):
        alone = pass_bits(
            model, images[i : i + 1], seeds[i : i + 1], passes=3, labels=labels[i : i + 1]
        )
        assert alone.equal(together[i : i + 1])
