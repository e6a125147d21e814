"""Products and their derivatives equal torch's, and a row of a product is bit-identical for any
number of rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from fractal_model.model.kernels import linear as module
from fractal_model.model.kernels.linear import FLOP_FORMULAS, Linear, linear, reduced_weights
from fractal_model.model.likelihood import mask_seeds, pass_bits
from tests.support import images_for, tiny_model

SHAPES = [(16, 16), (48, 16), (12, 128), (128, 32), (512, 128), (128, 512), (64, 192)]


@pytest.fixture(params=[1, 2, 4])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(params=["oneDNN", "MKL"])
def library(request, monkeypatch):
    """The library that multiplies. MKL is used without oneDNN, and in compiled code."""
    if request.param == "MKL":
        monkeypatch.setattr(module, "_HAS_ONEDNN", False)
    elif not module._HAS_ONEDNN:
        pytest.skip("this torch has no oneDNN")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("width", "out"), SHAPES)
def test_few_rows_are_bit_identical_to_rows_among_many(library, threads, width, out):
    weight, bias, x = normal(out, width), normal(out, seed=1), normal(600, width, seed=2)
    with torch.no_grad():
        whole = linear(x, weight, bias)
        for rows in (*range(1, 40), 64, 65, 100, 257, 599):
            assert linear(x[:rows].clone(), weight, bias).equal(whole[:rows]), rows


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6,), (5, 6), (1, 3, 1, 6), (0, 6)])
def test_any_leading_shape_equals_torch(library, shape, bias):
    layer, x = Linear(6, 4, bias=bias), normal(*shape)
    expected = F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize(("rows", "width", "out"), [(9, 12, 20), (90, 12, 20), (90, 20, 12)])
def test_derivatives_equal_those_of_torch(library, rows, width, out, strided):
    x, weight, bias = normal(2, rows, width), normal(out, width, seed=1), normal(out, seed=2)
    upstream = normal(2, out, rows, seed=3).mT if strided else normal(2, rows, out, seed=3)
    inputs = [x, weight, bias]
    for tensor in inputs:
        tensor.requires_grad_()
    ours = torch.autograd.grad(linear(*inputs), inputs, upstream)
    theirs = torch.autograd.grad(F.linear(*inputs), inputs, upstream)
    for gradient, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, expected)
        assert gradient.stride() == expected.stride()


def test_an_input_without_gradient_gets_none(library):
    x, weight = normal(3, 4), normal(5, 4, seed=1).requires_grad_()
    linear(x, weight).sum().backward()
    assert x.grad is None
    torch.testing.assert_close(weight.grad, x.sum(0).expand(5, 4))


def test_autocast_multiplies_in_bfloat16(library):
    layer = Linear(8, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(normal(3, 8)).dtype == torch.bfloat16


@pytest.mark.parametrize("bias", [True, False])
def test_the_activation_equals_torch(library, bias):
    layer, x = Linear(6, 40, bias=bias), normal(33, 6)
    expected = F.gelu(F.linear(x, layer.weight, layer.bias))
    torch.testing.assert_close(layer(x, "gelu"), expected)
    with torch.no_grad():
        torch.testing.assert_close(layer(x, "gelu"), expected)


@pytest.mark.parametrize("outputs", [slice(7), slice(7, None)])
def test_a_part_equals_the_slice_of_all_outputs(library, outputs):
    layer, x = Linear(6, 20), normal(3, 6)
    with torch.no_grad():
        torch.testing.assert_close(layer.part(x, outputs), layer(x)[:, outputs])


def test_reduced_weights_give_the_result_of_autocast(library):
    layer, x = Linear(64, 48), normal(33, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = layer(x)
        with reduced_weights(layer):
            whole, part = layer(x), layer.part(x, slice(5, None))
    assert "reduced" not in vars(layer)  # Otherwise earlier compiled code would not be used again.
    assert whole.dtype == torch.bfloat16
    torch.testing.assert_close(whole, expected, rtol=0.02, atol=0.02)
    torch.testing.assert_close(part, expected[:, 5:], rtol=0.02, atol=0.02)


def test_weights_are_reduced_only_for_inference_under_autocast():
    layer = Linear(4, 4)
    with reduced_weights(layer):
        assert layer.reduced is None
    with torch.autocast("cpu", torch.bfloat16), reduced_weights(layer):
        assert layer.reduced is None


@pytest.mark.skipif(not module._HAS_BFLOAT16, reason="this processor has no bfloat16 products")
def test_few_rows_in_bfloat16_are_bit_identical_to_rows_among_many(threads):
    weight, x = normal(48, 64).bfloat16(), normal(600, 64, seed=2).bfloat16()
    with torch.no_grad():
        whole = linear(x, weight)
        for rows in (*range(1, 40), 64, 257):
            assert linear(x[:rows].clone(), weight).equal(whole[:rows]), rows


def test_float64_stays_float64(library):
    assert Linear(8, 4).double()(normal(3, 8).double()).dtype == torch.float64


@pytest.mark.slow
def test_compiled_training_has_the_same_derivatives():
    layer, x = Linear(8, 4), normal(5, 8)
    expected = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    layer.compile(dynamic=True)
    compiled = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    for ours, theirs in zip(compiled, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_operations_are_counted(library):
    layer, x = Linear(8, 4), normal(5, 8).requires_grad_()
    counter = FlopCounterMode(display=False, custom_mapping=FLOP_FORMULAS)
    with counter:
        layer(x).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 5 * 8 * 4


def test_training_computes_no_padding_rows(monkeypatch):
    """In inference one row is multiplied as two, because an image must not depend on its batch."""
    rows = []
    product = module._onednn
    monkeypatch.setattr(module, "_HAS_ONEDNN", True)
    monkeypatch.setattr(
        module, "_onednn", lambda x, *rest: rows.append(len(x)) or product(x, *rest)
    )
    layer, x = Linear(5, 64), normal(1, 5)
    layer(x)
    with torch.no_grad():
        layer(x)
    assert rows == [1, 2]


def test_small_products_in_training_use_mkl(monkeypatch):
    monkeypatch.setattr(module, "_HAS_ONEDNN", True)
    monkeypatch.setattr(module, "_onednn", None)
    layer, x = Linear(16, 8), normal(100, 16)
    expected = x @ layer.weight.T + layer.bias
    torch.testing.assert_close(layer(x), expected)


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
