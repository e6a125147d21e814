"""The one linear map of all networks: on a CPU oneDNN's product, elsewhere torch's.

Decided here: torch multiplies float32 matrices with MKL, which on AMD's processors reaches half the
speed of oneDNN. oneDNN is therefore called by name, in float32 on the way back too; in inference it
applies the activation as well. Training in bfloat16 takes what autocast takes, oneDNN's too.

A row of a product is the same, to the last bit, whatever stands beside it: an image must not depend
on its batch. For a handful of rows both libraries round in another way: oneDNN for one, MKL for
fewer than four and where both factors are narrower than its threads could share. Such a product is
computed with more rows (tested on AMD and Intel; MKL's own strict mode works on Intel's alone).

Shapes: M rows, K width of what comes in, N of what comes out.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_HAS_ONEDNN = torch.backends.mkldnn.is_available()
_HAS_BFLOAT16: bool = _HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()
"""True if oneDNN has products of bfloat16 for this processor."""
_ONEDNN_FEWEST = 2
_MKL_FEWEST = 4
_MKL_SHARE = 8
"""Rows, and columns, that are one thread's at least before MKL's threads share out K."""

Activation = Literal["none", "gelu"]


class Linear(nn.Linear):
    """(..., K) to (..., N)."""

    __call__: Callable[..., Tensor]
    reduced: tuple[Tensor, Tensor | None] | None = None
    """Weights and bias in the type that autocast would give them, within `reduced_weights`."""

    def forward(self, x: Tensor, activation: Activation = "none") -> Tensor:
        return self.part(x, slice(None), activation)

    def part(self, x: Tensor, outputs: slice, activation: Activation = "none") -> Tensor:
        """(..., K) to the outputs of this slice of N alone."""
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        reduced = self.reduced
        if reduced is not None and _autocasts_inference(x):
            weight, bias = reduced
            x = x.to(weight.dtype)
        if outputs != slice(None):
            weight, bias = weight[outputs], None if bias is None else bias[outputs]
        return linear(x, weight, bias, activation)


@contextmanager
def reduced_weights(model: nn.Module) -> Iterator[None]:
    """Keep the weights in the type of a CPU's autocast, for inference. Autocast keeps such copies
    too, but not of parts, and looks each of them up anew."""
    maps: list[Linear] = []
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
    onednn, training = _through_onednn(x, weight), torch.is_grad_enabled()
    if not onednn and (training or x.device.type != "cpu"):
        return _activated(F.linear(x, weight, bias), activation)
    rows = x.reshape(-1, x.shape[-1])
    if not onednn:
        shared = _MKL_SHARE * _threads()
        fewest = shared if len(weight) <= shared else _MKL_FEWEST
        product = _activated(_of_more_rows(F.linear, rows, weight, bias, fewest), activation)
    elif training:
        product = _activated(_Product.apply(rows.contiguous(), weight, bias), activation)
    else:
        rows = rows.contiguous()
        product = _of_more_rows(_onednn, rows, weight, bias, _ONEDNN_FEWEST, activation)
    return product.view(*x.shape[:-1], len(weight))


def _activated(x: Tensor, activation: Activation) -> Tensor:
    return F.gelu(x) if activation == "gelu" else x


class _Context(Protocol):
    saved_tensors: tuple[Tensor, Tensor]
    needs_input_grad: tuple[bool, bool, bool]
    save_for_backward: Callable[[Tensor, Tensor], None]


class _Product(torch.autograd.Function):
    """oneDNN's product and its two derivatives, which are products too. Training goes on bit by
    bit with its own batches alone, so one row more costs nothing here: it is not computed."""

    @staticmethod
    def forward(ctx: _Context, x_MK: Tensor, weight_NK: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_MK, weight_NK)
        return _onednn(x_MK, weight_NK, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad_MN: Tensor) -> tuple[Tensor | None, ...]:
        x_MK, weight_NK = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        grad_MN = grad_MN.contiguous()  # of others, as a gathered one, products can be far slower
        return (
            _onednn(grad_MN, weight_NK.t()) if of_x else None,
            _weight_gradient(x_MK, grad_MN) if of_weight else None,
            grad_MN.sum(0) if of_bias else None,
        )


def _weight_gradient(x_MK: Tensor, grad_MN: Tensor) -> Tensor:
    """(N, K). Where M > N > K the transposed product takes up to half the time; elsewhere it costs
    as much more."""
    (rows, width), out = x_MK.shape, grad_MN.shape[1]
    if rows > out > width:
        return _onednn(x_MK.t(), grad_MN.t()).t().contiguous()
    return _onednn(grad_MN.t(), x_MK.t())


def _through_onednn(x: Tensor, weight: Tensor) -> bool:
    """Not in compiled code: torch's compiler takes oneDNN's products with constant weights alone.
    And a compiled sampler multiplies a handful of rows with narrow weights thousands of times: the
    call counts, and MKL's is the shorter one (8 rows, 64 to 256: 5 against 12 µs)."""
    if not _HAS_ONEDNN or torch.compiler.is_compiling():
        return False
    if x.device.type != "cpu" or x.dtype != weight.dtype or x.numel() == 0:
        return False
    training = torch.is_grad_enabled()
    narrow = len(weight) <= 64 and x.shape[-1] >= 8
    if training and narrow and x.numel() * len(weight) < 1 << 20:
        return False  # MKL's call is shorter, and oneDNN keeps 0.6 MB for every number of rows
    if x.dtype == torch.bfloat16:
        return _HAS_BFLOAT16 and not training
    return x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


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
    """The product, activated while it is still in the processor's cache."""
    multiply: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise
    return multiply(x_MK, weight_NK, bias, activation, [], "none")


def _of_more_rows(
    product: Callable[..., Tensor],
    x_MK: Tensor,
    weight_NK: Tensor,
    bias: Tensor | None,
    fewest: int,
    *also: Activation,
) -> Tensor:
    """The product with rows of zeros below x where there are fewer than `fewest` rows."""
    missing = fewest - len(x_MK)
    if missing <= 0:
        return product(x_MK, weight_NK, bias, *also)
    return product(F.pad(x_MK, (0, 0, 0, missing)), weight_NK, bias, *also)[: len(x_MK)]


@torch.compiler.assume_constant_result
def _threads() -> int:
    return torch.get_num_threads()


def _product_flops(x: torch.Size, weight: torch.Size, *rest: object, **also: object) -> int:
    return 2 * x.numel() * weight[0]


FLOP_FORMULAS = {torch.ops.mkldnn._linear_pointwise: _product_flops} if _HAS_ONEDNN else {}
"""Operations of oneDNN's product, for torch's `FlopCounterMode(custom_mapping=…)`."""
