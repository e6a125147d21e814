"""The two feed-forward parts of a block.

Decided here: timm has both, but it cannot be imported without all its networks and torchvision,
which every training worker would hold: 40 MB each. The names of the weights are timm's.

Shapes: B rows, S positions, D width, H hidden width.
"""

from __future__ import annotations

from torch import Tensor, nn

from fractal_model.model.dropout import Dropout
from fractal_model.model.linear import Linear


class GeluMLP(nn.Module):
    """Two linear maps with biases and exact GELU between them; dropout after each. BSD to BSD."""

    def __init__(self, width: int, hidden: int, *, dropout: float) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.drop1 = Dropout(dropout)
        self.fc2 = Linear(hidden, width)
        self.drop2 = Dropout(dropout)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.drop2(self.fc2(self.drop1(self.fc1(x_BSD, "gelu"))))


class SwiGLU(nn.Module):
    """fc2(silu(fc1_g(x)) * fc1_x(x)) without biases, then dropout (Shazeer 2020, section 2)."""

    def __init__(self, width: int, hidden: int, *, dropout: float) -> None:
        super().__init__()
        self.fc1_g = Linear(width, hidden, bias=False)
        self.fc1_x = Linear(width, hidden, bias=False)
        self.fc2 = Linear(hidden, width, bias=False)
        self.drop = Dropout(dropout)

    def forward(self, x_BSD: Tensor) -> Tensor:
        gate_BSH = nn.functional.silu(self.fc1_g(x_BSD))
        return self.drop(self.fc2(gate_BSH * self.fc1_x(x_BSD)))
