"""The conditions of a MAR level, compared with a plain loop."""

from __future__ import annotations

import torch

from fractal_model.model.mar import with_neighbours


def test_conditions_are_the_outputs_at_the_sub_patch_and_its_neighbours():
    x, selected = torch.randn(2, 9, 5), torch.rand(2, 9) < 0.6
    expected = []
    for row in range(2):
        for token in range(9):
            if selected[row, token]:
                y, z = divmod(token, 3)
                neighbours = [(y, z), (y - 1, z), (y, z + 1), (y + 1, z), (y, z - 1)]
                inside = [0 <= a < 3 and 0 <= b < 3 for a, b in neighbours]
                expected.append(
                    torch.stack(
                        [
                            x[row, 3 * a + b] if ok else torch.zeros(5)
                            for (a, b), ok in zip(neighbours, inside, strict=True)
                        ]
                    )
                )
    conditions = with_neighbours(x, selected.nonzero(as_tuple=True)).values_NCD
    assert conditions.equal(torch.stack(expected))
