"""The conditions that one level of the fractal gives to the next.

Shapes: N rows of the level that reads the conditions, C conditions of a row (1 from an AR level, up
to 5 from a MAR level), D width of the level that gives them.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Conditions:
    """The conditions of N patches: vectors that the level above gives to each patch."""

    values_NCD: Tensor
    """Condition vectors, (N, C, D): the output of the level above at the patch itself, then at its
    top, right, bottom and left neighbours. At level 0 each of them is the class embedding."""

    @property
    def middle(self) -> Tensor:
        """Condition 0, (N, D): of the patch itself. AR levels and pixel networks read no other."""
        return self.values_NCD[:, 0]

    def keep_rows(self, count: int) -> "Conditions":
        """Return the conditions of the first `count` patches."""
        return Conditions(self.values_NCD[:count])
