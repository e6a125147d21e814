"""The 2-D rotary embedding."""

from __future__ import annotations

import pytest
import torch

from fractal_model.model.rotary import rotary_factors, rotate


def test_the_condition_token_vanishes_and_scores_depend_on_distance_only():
    factors = rotary_factors(4, 8)
    query, key = torch.randn(2, 1, 1, 1, 8)
    turned = [rotate(query, factors[i : i + 1]) for i in range(17)]
    keys = [rotate(key, factors[i : i + 1]) for i in range(17)]
    assert not turned[0].any()

    def score(a, b):  # Positions in the grid; the condition token comes before them.
        return (turned[1 + a] * keys[1 + b]).sum()

    assert torch.allclose(score(0, 5), score(5, 10), atol=1e-5)  # One row and one column apart.
    assert torch.allclose(score(1, 2), score(13, 14), atol=1e-5)  # One column apart.
    assert not torch.allclose(score(0, 1), score(0, 4), atol=1e-3)  # A column is not a row.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_code_rotates_as_plain_code_does(monkeypatch, dtype):
    """The heads have the memory layout of a product; a single later position is tested too."""
    factors = rotary_factors(4, 8)
    x = torch.randn(3, 17, 2, 2, 8).to(dtype).permute(2, 0, 3, 1, 4).requires_grad_()
    results = []
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda on=compiling: on)
        turned, one = rotate(x, factors), rotate(x[..., 5:6, :], factors[5:6])
        assert one.equal(turned[..., 5:6, :]) and turned.dtype == dtype
        results.append((turned, *torch.autograd.grad(turned.square().sum(), x)))
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(plain, compiled)
