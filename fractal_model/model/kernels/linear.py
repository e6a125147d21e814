"""The linear map of all networks, with oneDNN's matrix product on a CPU and torch's elsewhere.

Decided here: torch multiplies float32 matrices with MKL, which on AMD's processors reaches half the
speed of oneDNN. oneDNN is therefore called explicitly. In float32 it computes the gradients too,
and in inference the activation. Training in bfloat16 uses oneDNN through autocast.

An image must not depend on its batch, so a row of a product must be bit-identical whatever the
other rows are. Both libraries round differently for few rows: oneDNN for one row, MKL for fewer
than four rows, or if rows and columns are both few for its threads. Such a product is computed with
padding rows, as tested on AMD and Intel; MKL's own strict mode works only on Intel.

Shapes: M rows, K width of the input, N width of the output.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fractal_model.common.compiler import constant_in_compiled_code

_HAS_ONEDNN = torch.backends.mkldnn.is_available()
_HAS_BFLOAT16: bool = _HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()
"""True if oneDNN multiplies bfloat16 on this processor."""
_ONEDNN_FEWEST = 2
_MKL_FEWEST = 4
"""Fewest rows of a product for which oneDNN and MKL round each row as they do for many rows."""
_MKL_SHARE = 8
"""Smallest number of rows, or of columns, per thread. If a product has fewer of both, MKL divides K
among its threads, which rounds differently."""

Activation = Literal["none", "gelu"]


class Linear(nn.Linear):
    """A linear map of (..., K) to (..., N), with an optional activation."""

    __call__: Callable[..., Tensor]
    reduced: tuple[Tensor, Tensor | None] | None = None
    """Copies of weight and bias in autocast's data type, set only inside `reduced_weights`."""

    def forward(self, x: Tensor, activation: Activation = "none") -> Tensor:
        return self.part(x, slice(None), activation)

    def part(self, x: Tensor, outputs: slice, activation: Activation = "none") -> Tensor:
        """Return only those of the N outputs of `forward` that the slice `outputs` selects."""
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        reduced = self.reduced
        if reduced is not None and _is_autocast_inference(x):
            weight, bias = reduced
            x = x.to(weight.dtype)
        if outputs != slice(None):
            weight, bias = weight[outputs], None if bias is None else bias[outputs]
        return linear(x, weight, bias, activation)


@contextmanager
def reduced_weights(model: nn.Module) -> Iterator[None]:
    """Within this context, keep copies of all linear weights of a model in the data type of CPU
    autocast, for inference. Autocast itself copies only whole weights, not slices of them, and
    looks for the copy again at every use."""
    maps: list[Linear] = []
    if torch.is_autocast_enabled("cpu") and not torch.is_grad_enabled():
        maps = [m for m in model.modules() if isinstance(m, Linear) and _can_be_reduced(m)]
    dtype = torch.get_autocast_dtype("cpu")
    for module in maps:
        bias = None if module.bias is None else module.bias.to(dtype)
        module.reduced = module.weight.to(dtype), bias
    try:
        yield
    finally:
        for module in maps:
            del module.reduced  # Setting None would make torch compile again.


def _can_be_reduced(module: Linear) -> bool:
    weight = module.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and module.reduced is None


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: Activation = "none"
) -> Tensor:
    """Return activation(x · weightᵀ + bias), (..., N); x (..., K), weight (N, K), bias (N,)."""
    uses_onednn, training = _can_use_onednn(x, weight), torch.is_grad_enabled()
    if not uses_onednn and (training or x.device.type != "cpu"):
        return _activate(F.linear(x, weight, bias), activation)
    rows = x.reshape(-1, x.shape[-1])
    if not uses_onednn:
        narrow = _MKL_SHARE * _count_threads()
        fewest = narrow if len(weight) <= narrow else _MKL_FEWEST
        product = _activate(_multiply_padded(F.linear, rows, weight, bias, fewest), activation)
    elif training:
        product = _activate(_Product.apply(rows.contiguous(), weight, bias), activation)
    else:
        rows = rows.contiguous()
        product = _multiply_padded(_onednn, rows, weight, bias, _ONEDNN_FEWEST, activation)
    return product.view(*x.shape[:-1], len(weight))


def _activate(x: Tensor, activation: Activation) -> Tensor:
    return F.gelu(x) if activation == "gelu" else x


class _Context(Protocol):
    saved_tensors: tuple[Tensor, Tensor]
    needs_input_grad: tuple[bool, bool, bool]
    save_for_backward: Callable[[Tensor, Tensor], None]


class _Product(torch.autograd.Function):
    """oneDNN's product with its gradients, for training. A training is repeated only with the same
    batches, so a row need not be bit-identical in another batch, and no padding rows are needed."""

    @staticmethod
    def forward(ctx: _Context, x_MK: Tensor, weight_NK: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_MK, weight_NK)
        return _onednn(x_MK, weight_NK, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad_MN: Tensor) -> tuple[Tensor | None, ...]:
        x_MK, weight_NK = ctx.saved_tensors
        x_needs_grad, weight_needs_grad, bias_needs_grad = ctx.needs_input_grad
        grad_MN = grad_MN.contiguous()  # With other strides a product can be far slower.
        return (
            _onednn(grad_MN, weight_NK.t()) if x_needs_grad else None,
            _weight_gradient(x_MK, grad_MN) if weight_needs_grad else None,
            grad_MN.sum(0) if bias_needs_grad else None,
        )


def _weight_gradient(x_MK: Tensor, grad_MN: Tensor) -> Tensor:
    """Return the gradient of the weights, (N, K), from inputs and output gradient. Computing its
    transpose is up to twice as fast if M > N > K, and up to twice as slow otherwise."""
    (rows, width), out = x_MK.shape, grad_MN.shape[1]
    if rows > out > width:
        return _onednn(x_MK.t(), grad_MN.t()).t().contiguous()
    return _onednn(grad_MN.t(), x_MK.t())


def _can_use_onednn(x: Tensor, weight: Tensor) -> bool:
    """True if oneDNN computes this product. Compiled code uses MKL for two reasons. torch's
    compiler accepts oneDNN's products only with constant weights. A compiled sampler also
    multiplies few rows with narrow weights thousands of times, where MKL's call is shorter (5 µs
    instead of 12 µs for 8 rows and widths of 64 to 256)."""
    if not _HAS_ONEDNN or torch.compiler.is_compiling():
        return False
    if x.device.type != "cpu" or x.dtype != weight.dtype or x.numel() == 0:
        return False
    training = torch.is_grad_enabled()
    narrow = len(weight) <= 64 and x.shape[-1] >= 8
    if training and narrow and x.numel() * len(weight) < 1 << 20:
        return False  # MKL's call is shorter, and oneDNN stores 0.6 MB for each number of rows.
    if x.dtype == torch.bfloat16:
        return _HAS_BFLOAT16 and not training
    return x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def _is_autocast_inference(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def _onednn(
    x_MK: Tensor, weight_NK: Tensor, bias: Tensor | None = None, activation: Activation = "none"
) -> Tensor:
    """Return activation(x · weightᵀ + bias), (M, N), which oneDNN computes in one operation."""
    multiply: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise
    return multiply(x_MK, weight_NK, bias, activation, [], "none")


def _multiply_padded(
    product: Callable[..., Tensor],
    x_MK: Tensor,
    weight_NK: Tensor,
    bias: Tensor | None,
    fewest: int,
    *activation: Activation,
) -> Tensor:
    """Return `product(x_MK, weight_NK, bias)`, (M, N). If x has fewer rows than `fewest`, rows of
    zeros are added for the computation and cut off from the result."""
    missing = fewest - len(x_MK)
    if missing <= 0:
        return product(x_MK, weight_NK, bias, *activation)
    return product(F.pad(x_MK, (0, 0, 0, missing)), weight_NK, bias, *activation)[: len(x_MK)]


@constant_in_compiled_code
def _count_threads() -> int:
    return torch.get_num_threads()


def _product_flops(x: torch.Size, weight: torch.Size, *rest: object, **also: object) -> int:
    return 2 * x.numel() * weight[0]


FLOP_FORMULAS = {torch.ops.mkldnn._linear_pointwise: _product_flops} if _HAS_ONEDNN else {}
"""Maps oneDNN's product to a function that counts its operations, for `FlopCounterMode`."""
