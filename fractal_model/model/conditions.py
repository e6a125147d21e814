"""The conditions that one level of the fractal gives to the next.

Shapes: N rows of the level that reads the conditions, C conditions of a row (1 from an AR level, up
to 5 from a MAR level), D width of the level that gives them.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Conditions:
    """Conditions of N patches."""

    values_NCD: Tensor
    """The outputs at the patch itself, then at its top, right, bottom and left neighbours."""

    @property
    def middle(self) -> Tensor:
        """Condition 0, (N, D), the only one that AR levels and the pixel network read."""
        return self.values_NCD[:, 0]
