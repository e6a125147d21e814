"""The one linear map of all networks: on a CPU oneDNN's product, elsewhere torch's.

Decided here: torch multiplies float32 matrices with MKL, which on AMD's processors reaches half of
what oneDNN does. Its products are asked for by name, in float32 on the way back too; in inference
it applies the activation as well. Training in bfloat16 takes what autocast takes, oneDNN's too.

And a row of a product is the same, to the last bit, whatever stands beside it: an image must not
depend on the batch that it is in. For a handful of rows both libraries take another way to the
product, with another rounding: oneDNN for one, MKL for fewer than four and where both factors are
narrower than its threads could share. Such a product is computed with more rows than there are
(`tests/model/kernels/test_linear.py`, on AMD and Intel processors; MKL's own strict mode works on
Intel's alone).

Shapes: M rows, K width of what comes in, N of what comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

_HAS_ONEDNN = torch.backends.mkldnn.is_available()
_HAS_BFLOAT16 = _HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()
"""Whether oneDNN has products of it for this processor."""
_ONEDNN_FEWEST = 2
_MKL_FEWEST = 4
_MKL_SHARE = 8
"""Rows, and columns, that are one thread's at least before MKL's threads share out K."""


Activation = Literal["none", "gelu"]


class Linear(nn.Linear):
    """(..., K) to (..., N)."""

    reduced: tuple[Tensor, Tensor | None] | None = None
    """Weights and bias in the type that autocast would give them, within `reduced_weights`."""

    def forward(self, x: Tensor, activation: Activation = "none") -> Tensor:
        return self.part(x, slice(None), activation)

    def part(self, x: Tensor, outputs: slice, activation: Activation = "none") -> Tensor:
        """Of the N outputs these alone."""
        weight, bias, reduced = self.weight, self.bias, self.reduced
        if reduced is not None and _autocasts_inference(x):
            weight, bias = reduced
            x = x.to(weight.dtype)
        if outputs != slice(None):
            weight, bias = weight[outputs], None if bias is None else bias[outputs]
        return linear(x, weight, bias, activation)


@contextmanager
def reduced_weights(model: nn.Module) -> Iterator[None]:
    """Inference under a CPU's autocast finds the weights in its type already. Autocast keeps such
    copies too, but not of parts, and looks each of them up anew."""
    maps = []
    if torch.is_autocast_enabled("cpu") and not torch.is_grad_enabled():
        maps = [m for m in model.modules() if isinstance(m, Linear) and _reducible(m)]
    to = torch.get_autocast_dtype("cpu")
    for module in maps:
        bias = None if module.bias is None else module.bias.to(to)
        module.reduced = module.weight.to(to), bias
    try:
        yield
    finally:
        for module in maps:
            del module.reduced  # not None: compiled code would see another kind of attribute


def _reducible(module: Linear) -> bool:
    weight = module.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and module.reduced is None


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: Activation = "none"
) -> Tensor:
    """(..., K) times (N, K) weights, plus (N,), activated: (..., N)."""
    if not _through_onednn(x, weight):
        return _activated(_by_torch(x, weight, bias), activation)
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    if torch.is_grad_enabled():
        product = _activated(_Product.apply(rows, weight, bias), activation)
    else:
        product = _of_more_rows(_onednn, rows, weight, bias, _ONEDNN_FEWEST, activation)
    return product.view(*x.shape[:-1], len(weight))


def _activated(x: Tensor, activation: Activation) -> Tensor:
    return F.gelu(x) if activation == "gelu" else x


class _Product(torch.autograd.Function):
    """oneDNN's product and its two derivatives, which are products too. Training goes on bit by
    bit with its own batches alone, so one row more costs nothing here: it is not computed."""

    @staticmethod
    def forward(ctx: FunctionCtx, x_MK: Tensor, weight_NK: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_MK, weight_NK)
        return _onednn(x_MK, weight_NK, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_MN: Tensor) -> tuple[Tensor | None, ...]:
        x_MK, weight_NK = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        grad_MN = grad_MN.contiguous()  # of others, as a gathered one, products can be far slower
        return (
            _onednn(grad_MN, weight_NK.t()) if of_x else None,
            _weight_gradient(x_MK, grad_MN) if of_weight else None,
            grad_MN.sum(0) if of_bias else None,
        )


def _weight_gradient(x_MK: Tensor, grad_MN: Tensor) -> Tensor:
    """(N, K). Where M > N > K the other way round and turned, up to half the time; elsewhere that
    costs as much more."""
    (rows, width), out = x_MK.shape, grad_MN.shape[1]
    if rows > out > width:
        return _onednn(x_MK.t(), grad_MN.t()).t().contiguous()
    return _onednn(grad_MN.t(), x_MK.t())


def _through_onednn(x: Tensor, weight: Tensor) -> bool:
    """Not in compiled code: torch's compiler takes oneDNN's products with constant weights alone.
    And in a compiled sampler, a handful of rows times narrow weights thousands of times, it is the
    call that counts, and MKL's is the shorter one (8 rows, 64 to 256: 5 against 12 µs)."""
    return (
        _HAS_ONEDNN
        and x.device.type == "cpu"
        and x.numel() > 0
        and x.dtype == weight.dtype
        and not torch.compiler.is_compiling()
        and (
            (x.dtype == torch.bfloat16 and _HAS_BFLOAT16 and not torch.is_grad_enabled())
            or (x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu"))
        )
    )


def _autocasts_inference(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def _onednn(
    x_MK: Tensor, weight_NK: Tensor, bias: Tensor | None = None, activation: Activation = "none"
) -> Tensor:
    """With the activation while the product is still at hand."""
    return torch.ops.mkldnn._linear_pointwise(x_MK, weight_NK, bias, activation, [], "none")


def _by_torch(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if torch.is_grad_enabled() or x.device.type != "cpu":
        return F.linear(x, weight, bias)
    rows = _of_more_rows(
        F.linear, x.reshape(-1, x.shape[-1]), weight, bias, _mkl_fewest(len(weight))
    )
    return rows.view(*x.shape[:-1], len(weight))


def _of_more_rows(
    product: Callable[..., Tensor],
    x_MK: Tensor,
    weight_NK: Tensor,
    bias: Tensor | None,
    fewest: int,
    *also: Activation,
) -> Tensor:
    missing = fewest - len(x_MK)
    if missing <= 0:
        return product(x_MK, weight_NK, bias, *also)
    return product(F.pad(x_MK, (0, 0, 0, missing)), weight_NK, bias, *also)[: len(x_MK)]


def _mkl_fewest(width: int) -> int:
    shared = _MKL_SHARE * _threads()
    return shared if width <= shared else _MKL_FEWEST


@torch.compiler.assume_constant_result
def _threads() -> int:
    return torch.get_num_threads()


def product_flops(x: torch.Size, weight: torch.Size, *rest: object, **also: object) -> int:
    """Operations of oneDNN's product, for torch's counter, which does not know it."""
    return 2 * x.numel() * weight[0]


FLOP_FORMULAS = {torch.ops.mkldnn._linear_pointwise: product_flops} if _HAS_ONEDNN else {}
"""For `FlopCounterMode(custom_mapping=…)`."""
