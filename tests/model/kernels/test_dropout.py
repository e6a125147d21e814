"""Dropout: its rate, its mean, its gradient, and its dependence on the seed."""

from __future__ import annotations

import pytest
import torch

from fractal_model.model.attention import Attention
from fractal_model.model.kernels.dropout import Dropout, dropout


def dropped_ones(rate: float, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    torch.manual_seed(0)
    return dropout(torch.ones(shape, dtype=dtype), rate)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_elements_are_dropped_at_the_rate(rate):
    x = dropped_ones(rate, 401, 503)
    error = (rate * (1 - rate) / x.numel()) ** 0.5
    assert abs((x == 0).double().mean() - rate) < 4 * error
    others = x[x != 0]
    torch.testing.assert_close(others, torch.full_like(others, 1 / (1 - rate)), rtol=1e-4, atol=0)


def test_a_cpu_draws_its_own_masks(monkeypatch):
    monkeypatch.setattr("torch.nn.functional.dropout", None)
    assert (dropped_ones(0.5, 1000) == 0).any()


def test_other_devices_use_the_dropout_of_torch(monkeypatch):
    rates = []
    monkeypatch.setattr("torch.nn.functional.dropout", lambda x, rate: rates.append(rate) or x)
    x = torch.ones(3, device="meta")
    assert dropout(x, 0.25) is x
    assert rates == [0.25]


def test_neighbours_are_independent():
    """Four neighbours share one random number."""
    zeros = (dropped_ones(0.5, 100_000, 4) == 0).double()
    correlation = torch.corrcoef(zeros.T) - torch.eye(4)
    assert correlation.abs().max() < 4 / 100_000**0.5


@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 7), (0, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shape_and_type_stay_the_same(shape, dtype):
    x = dropped_ones(0.1, *shape, dtype=dtype)
    assert x.shape == shape and x.dtype == dtype


def test_a_rate_near_one_gives_finite_numbers():
    assert dropped_ones(1 - 1e-7, 1000).isfinite().all()


def test_the_same_seed_drops_the_same_elements():
    assert dropped_ones(0.3, 50).equal(dropped_ones(0.3, 50))
    assert not dropped_ones(0.3, 50).equal(dropout(torch.ones(50), 0.3))


def test_the_gradient_is_zero_where_an_element_was_dropped():
    x = torch.randn(40, requires_grad=True)
    torch.manual_seed(0)
    y = dropout(x, 0.25)
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(grad * x, y)


def test_dropout_acts_in_training_only():
    layer, x = Dropout(0.5), torch.ones(100)
    assert (layer(x) == 0).any()
    assert layer.eval()(x).equal(x)
    assert Dropout(0.0)(x) is x


@pytest.mark.parametrize("causal", [False, True])
def test_attention_drops_weights_in_training_only(causal):
    """On average the output is the same with and without dropout."""
    torch.manual_seed(0)
    attention = Attention(width=8, heads=2, bias=True, causal=causal, weight_dropout=0.3)
    x = torch.randn(1, 5, 8)
    with torch.no_grad():
        dropped = attention(x.expand(20_000, -1, -1))
        expected = attention.eval()(x)
    assert dropped[0].ne(dropped[1]).any()
    torch.testing.assert_close(dropped.mean(0, keepdim=True), expected, atol=0.02, rtol=0.05)
