"""What a MAR level hands on, against a plain loop."""

from __future__ import annotations

import torch

from fractal_model.model.mar import with_neighbours


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
