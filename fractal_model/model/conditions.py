"""The conditions that one level of the fractal hands to the next.

Shapes: N rows of the receiving level, n conditions (1 from an AR level, 5 from a MAR level), D
width of the handing level.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Conditions:
    """Per row: the output at its own position, then at its top, right, bottom, left neighbours."""

    values_NCD: Tensor

    @property
    def middle(self) -> Tensor:
        """(N, D): condition 0, the only one that AR levels and the pixel network read."""
        return self.values_NCD[:, 0]
