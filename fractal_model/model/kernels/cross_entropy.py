"""The cross-entropy of logits that a linear map gives, without all logits in memory at once.

Decided here: a GPU computes the logits of some rows at a time, and once more in the backward pass.
A training step has millions of rows, and with 256 values each their logits, log-probabilities and
gradients would take several GB. A CPU keeps the logits, because parts mostly took it longer, up to
half as long again.

Shapes: N rows, W width, V values.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fractal_model.model.kernels.linear import linear

MOST_ROWS = 2**16
"""Largest number of rows whose logits are in memory at once; with 256 values they take 64 MB."""


def linear_cross_entropy(
    x_NW: Tensor, weight_VW: Tensor, bias_V: Tensor, targets_N: Tensor
) -> Tensor:
    """Return the negative log-probability of each row's target, (N,) float32, under the softmax of
    x · weightᵀ + bias. All inputs are float32, but the targets int64."""
    if x_NW.device.type == "cuda":
        return cross_entropy_in_parts(x_NW, weight_VW, bias_V, targets_N, MOST_ROWS)
    return F.cross_entropy(linear(x_NW, weight_VW, bias_V), targets_N, reduction="none")


def cross_entropy_in_parts(
    x_NW: Tensor, weight_VW: Tensor, bias_V: Tensor, targets_N: Tensor, rows: int
) -> Tensor:
    """Return what `linear_cross_entropy` returns, computed for at most `rows` rows at a time."""
    nats: Tensor = _InParts.apply(x_NW, weight_VW, bias_V, targets_N, rows)
    return nats


class _InParts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_NW: Tensor, weight_VW: Tensor, bias_V: Tensor, targets_N: Tensor, rows: int
    ) -> Tensor:
        ctx.save_for_backward(x_NW, weight_VW, bias_V, targets_N)
        ctx.rows = rows
        parts = zip(x_NW.split(rows), targets_N.split(rows), strict=True)
        nats = [
            F.cross_entropy(linear(x, weight_VW, bias_V), targets, reduction="none")
            for x, targets in parts
        ]
        return torch.cat(nats)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        x_NW, weight_VW, bias_V, targets_N = ctx.saved_tensors
        x_grad = torch.empty_like(x_NW)
        weight_grad, bias_grad = torch.zeros_like(weight_VW), torch.zeros_like(bias_V)
        tensors = (x_NW, targets_N, grad_N, x_grad)
        for x, targets, grad, x_grad_part in _split(tensors, ctx.rows):
            # The gradient of the logits: probabilities minus 1 at the target, times `grad`.
            logits_grad = linear(x, weight_VW, bias_V).softmax(-1).mul_(grad[:, None])
            logits_grad.scatter_add_(1, targets[:, None], -grad[:, None])
            torch.mm(logits_grad, weight_VW, out=x_grad_part)
            weight_grad.addmm_(logits_grad.t(), x)
            bias_grad += logits_grad.sum(0)
        return x_grad, weight_grad, bias_grad, None, None


def _split(tensors: tuple[Tensor, ...], rows: int) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)
