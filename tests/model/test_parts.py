"""Pieces of the model against plain computations."""

from __future__ import annotations

import pytest
import torch

from fractal_model.model.attention import Attention
from fractal_model.model.fractal import Rows
from fractal_model.model.mar import with_neighbours
from fractal_model.model.pixels import MEAN, STD, mean_colour, normalise, patchify, unpatchify
from fractal_model.model.rotary import rotary_factors, rotate
from tests.support import random_images


def test_patchify_is_row_major_and_inverted():
    images = random_images(2)
    tokens = patchify(images, 4)
    assert tokens[1, 1].equal(images[1, :, :4, 4:])
    assert tokens[1, 2].equal(images[1, :, 4:, :4])
    assert unpatchify(tokens).equal(images)


def test_normalise():
    white = normalise(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten()
    assert torch.allclose(white, (1 - torch.tensor(MEAN)) / torch.tensor(STD))


def test_mean_colour():
    patch = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    patch[0, 1, 0, 0] = 254
    assert mean_colour(patch).tolist() == [[0, 63.5, 0]]


def test_rows_know_their_place():
    rows = Rows.whole_images(2, torch.device("cpu"))
    chosen = torch.tensor([[False, True, False, False], [False, False, True, True]])
    inner = rows.sub_patches(chosen, 4)
    assert inner.image.tolist() == [0, 1, 1]
    assert list(zip(inner.top.tolist(), inner.left.tolist(), strict=True)) == [
        (0, 4),
        (4, 0),
        (4, 4),
    ]
    assert inner.index(8, 4).tolist() == [1, 2, 3]


def test_neighbours_against_a_plain_loop():
    x, wanted = torch.randn(2, 9, 5), torch.rand(2, 9) < 0.6
    expected = []
    for row in range(2):
        for token in range(9):
            if wanted[row, token]:
                y, z = divmod(token, 3)
                places = [(y, z), (y - 1, z), (y, z + 1), (y + 1, z), (y, z - 1)]
                inside = [0 <= a < 3 and 0 <= b < 3 for a, b in places]
                expected.append(
                    torch.stack(
                        [
                            x[row, 3 * a + b] if ok else torch.zeros(5)
                            for (a, b), ok in zip(places, inside, strict=True)
                        ]
                    )
                )
    found = with_neighbours(x, wanted).values_NCD
    assert found.equal(torch.stack(expected))


def test_rotary_condition_token_vanishes_and_only_distance_counts():
    factors = rotary_factors(4, 8)
    query, key = torch.randn(2, 1, 1, 1, 8)
    turned = [rotate(query, factors[i : i + 1]) for i in range(17)]
    keys = [rotate(key, factors[i : i + 1]) for i in range(17)]
    assert not turned[0].any()

    def score(a, b):  # grid positions to the token after the condition
        return (turned[1 + a] * keys[1 + b]).sum()

    assert torch.allclose(score(0, 5), score(5, 10), atol=1e-5)  # one row and one column apart
    assert torch.allclose(score(1, 2), score(13, 14), atol=1e-5)  # one column apart
    assert not torch.allclose(score(0, 1), score(0, 4), atol=1e-3)  # a column is not a row


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_code_rotates_as_plain_code_does(monkeypatch, dtype):
    """Of heads as a product lays them out, and of a later position alone."""
    factors = rotary_factors(4, 8)
    x = torch.randn(3, 17, 2, 2, 8).to(dtype).permute(2, 0, 3, 1, 4).requires_grad_()
    found = []
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda on=compiling: on)
        turned, one = rotate(x, factors), rotate(x[..., 5:6, :], factors[5:6])
        assert one.equal(turned[..., 5:6, :]) and turned.dtype == dtype
        found.append((turned, *torch.autograd.grad(turned.square().sum(), x)))
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(plain, compiled)


def test_causal_attention_reads_no_later_position():
    torch.manual_seed(0)
    attention = Attention(width=16, heads=2, bias=True, causal=True).eval()
    x = torch.randn(1, 5, 16)
    changed = x.clone()
    changed[:, 3:] += 1
    with torch.no_grad():
        before, after = attention(x), attention(changed)
    assert before[:, :3].equal(after[:, :3])
    assert not before[:, 3].equal(after[:, 3])
