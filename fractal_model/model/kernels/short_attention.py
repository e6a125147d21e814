"""Attention of short sequences on a GPU: one Triton kernel forward and one backward.

Decided here: a Triton program computes one tile, the positions of several rows. A position attends
only to its own row. torch's fused kernels compute 64 queries by 128 keys at a time. The 22
positions of a lower level fill a small part of these, the three positions of a pixel almost
nothing. A tile has few attention weights, so none is stored and the backward kernel computes them
again. If a number of a row is not finite, the other rows of its tile are not finite either. This
does no harm, because the loss is not finite in any case.

Shapes: B rows, S positions, H heads, d elements a head, D = H · d, T positions of a tile.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

_NARROWEST = 16
"""Side of the smallest matrix that a GPU's tensor cores multiply."""


class _Context(Protocol):
    saved_tensors: tuple[Tensor, Tensor]
    save_for_backward: Callable[[Tensor, Tensor], None]
    causal: bool
    drop: float


def short_attention(heads_3BHSd: Tensor, *, causal: bool, drop: float) -> Tensor:
    """Return the attention output (B, S, D) from stacked queries, keys and values. The d elements
    of a head must be contiguous in memory. `drop`, below 1, is the dropout rate of the attention
    weights. S may be up to 32 and d up to 128; larger ones need more registers than a GPU has."""
    device = heads_3BHSd.device
    if drop:
        seed = torch.randint(2**62, (1,), dtype=torch.int64, device=device)
    else:
        seed = torch.zeros(1, dtype=torch.int64, device=device)
    mixed_BSD: Tensor = _attention(heads_3BHSd, seed, causal, drop)
    return mixed_BSD


@torch.library.custom_op("fractal::short_attention", mutates_args=())
def _attention(heads_3BHSd: Tensor, seed: Tensor, causal: bool, drop: float) -> Tensor:
    mixed_BSD: Tensor = _empty_mixed(heads_3BHSd)
    _launch(_forward_kernel, heads_3BHSd, mixed_BSD, seed, causal=causal, drop=drop)
    return mixed_BSD


@torch.library.custom_op("fractal::short_attention_backward", mutates_args=())
def _gradients(
    heads_3BHSd: Tensor, grad_BSD: Tensor, seed: Tensor, causal: bool, drop: float
) -> Tensor:
    grads_3BHSd: Tensor = _empty_gradients(heads_3BHSd)
    tensors = heads_3BHSd, grad_BSD.contiguous(), seed, grads_3BHSd
    _launch(_backward_kernel, *tensors, causal=causal, drop=drop)
    return grads_3BHSd


@_attention.register_fake
def _empty_mixed(heads_3BHSd: Tensor, *_: object) -> Tensor:
    _kinds, rows, heads, length, width = heads_3BHSd.shape
    return heads_3BHSd.new_empty(rows, length, heads * width)


@_gradients.register_fake
def _empty_gradients(heads_3BHSd: Tensor, *_: object) -> Tensor:
    """Return uninitialised memory for the gradients of queries, keys and values. It has the layout
    of the linear layer's output, so that the linear layer's backward pass copies nothing."""
    kinds, rows, heads, length, width = heads_3BHSd.shape
    return heads_3BHSd.new_empty(rows, length, kinds, heads, width).permute(2, 0, 3, 1, 4)


def _save(ctx: _Context, inputs: tuple[Tensor, Tensor, bool, float], output: Tensor) -> None:
    heads_3BHSd, seed, ctx.causal, ctx.drop = inputs
    ctx.save_for_backward(heads_3BHSd, seed)


def _backward(ctx: _Context, grad_BSD: Tensor) -> tuple[Tensor, None, None, None]:
    heads_3BHSd, seed = ctx.saved_tensors
    return _gradients(heads_3BHSd, grad_BSD, seed, ctx.causal, ctx.drop), None, None, None


_attention.register_autograd(_backward, setup_context=_save)


def _flops(products: int, heads_3BHSd: torch.Size, *_: object, **options: object) -> int:
    """Count the operations of `products` matrix products per head, each of S · S · d
    multiplications and as many additions."""
    _kinds, rows, heads, length, width = heads_3BHSd
    return products * 2 * rows * heads * length**2 * width


register_flop_formula(torch.ops.fractal.short_attention)(partial(_flops, 2))
# The backward pass computes the scores again, and two gradients for each of two products.
register_flop_formula(torch.ops.fractal.short_attention_backward)(partial(_flops, 5))


def _launch(
    kernel: triton.JITFunction,
    heads_3BHSd: Tensor,
    mixed_BSD: Tensor,
    seed: Tensor,
    *grads_3BHSd: Tensor,
    causal: bool,
    drop: float,
) -> None:
    _, rows, heads, length, width = heads_3BHSd.shape
    tile = max(_NARROWEST, triton.next_power_of_2(length))
    with torch.cuda.device_of(heads_3BHSd):  # Triton launches on the current GPU.
        kernel[(triton.cdiv(rows, tile // length) * heads,)](
            *(heads_3BHSd, mixed_BSD, *grads_3BHSd, seed, rows, heads),
            *(stride for x in (heads_3BHSd, *grads_3BHSd) for stride in x.stride()[:4]),
            scale=width**-0.5,
            drop=drop,
            LENGTH=length,
            WIDTH=width,
            PADDED=max(_NARROWEST, triton.next_power_of_2(width)),
            TILE=tile,
            CAUSAL=causal,
            DROPS=drop > 0,
            num_warps=1 if heads_3BHSd.dtype.itemsize == 2 else 4,  # float32 has no tensor cores.
        )


@triton.jit
def _tile(
    rows, heads, LENGTH: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, PADDED: tl.constexpr
):
    """Return the part of the tensors that this Triton program works on: row numbers (TILE, 1), the
    head, positions in the row (TILE, 1), elements of the head (1, PADDED), and a mask
    (TILE, PADDED) that is False at the padding."""
    rows_per_tile: tl.constexpr = TILE // LENGTH
    slot = tl.arange(0, TILE)[:, None]
    element = tl.arange(0, PADDED)[None, :]
    row = (tl.program_id(0) // heads).to(tl.int64) * rows_per_tile + slot // LENGTH
    inside = (slot < rows_per_tile * LENGTH) & (row < rows) & (element < WIDTH)
    return row, tl.program_id(0) % heads, slot % LENGTH, element, inside


@triton.jit
def _load_heads(query_at, kind_stride, inside):
    """Load queries, keys and values, each (T, d). `2 * kind_stride` could overflow int32, so the
    stride is added to the pointer twice."""
    key_at = query_at + kind_stride
    value_at = key_at + kind_stride
    query, key = tl.load(query_at, inside, 0.0), tl.load(key_at, inside, 0.0)
    return query, key, tl.load(value_at, inside, 0.0)


@triton.jit
def _weights(query, key, scale, LENGTH: tl.constexpr, TILE: tl.constexpr, CAUSAL: tl.constexpr):
    """Compute a tile's attention weights, (T, T) float32, 0 between positions of different rows."""
    slot = tl.arange(0, TILE)
    allowed = (slot // LENGTH)[:, None] == (slot // LENGTH)[None, :]
    if CAUSAL:
        allowed = allowed & (slot[:, None] >= slot[None, :])
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
    scores = tl.where(allowed, scores, float("-inf"))
    exponentials = tl.exp(scores - tl.max(scores, 1)[:, None])
    return exponentials / tl.sum(exponentials, 1)[:, None]


@triton.jit
def _dropout_factors(seed, drop, TILE: tl.constexpr):
    """Draw the factors that dropout multiplies the attention weights by, (T, T): 0 for a dropped
    weight, 1 / (1 − drop) for the others."""
    slot = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    quarter = tl.arange(0, TILE // 4)
    a, b, c, d = tl.rand4x(tl.load(seed), slot[:, None] * (TILE // 4) + quarter[None, :])
    drawn = tl.reshape(tl.join(tl.join(a, b), tl.join(c, d)), (TILE, TILE))
    return tl.where(drawn >= drop, 1 / (1 - drop), 0.0)


@triton.jit(do_not_specialize=["rows"])
def _forward_kernel(
    heads_3BHSd, mixed_BSD, seed, rows, heads,
    kind_stride, row_stride, head_stride, position_stride, scale, drop,
    LENGTH: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, TILE: tl.constexpr,
    CAUSAL: tl.constexpr, DROPS: tl.constexpr,
):  # fmt: skip
    row, head, position, element, inside = _tile(rows, heads, LENGTH, WIDTH, TILE, PADDED)
    at = row * row_stride + head * head_stride + position * position_stride + element
    query, key, value = _load_heads(heads_3BHSd + at, kind_stride, inside)
    weights = _weights(query, key, scale, LENGTH, TILE, CAUSAL)
    if DROPS:
        weights *= _dropout_factors(seed, drop, TILE)
    mixed = tl.dot(weights.to(value.dtype), value, input_precision="ieee")
    mixed_at = ((row * LENGTH + position) * heads + head) * WIDTH + element
    tl.store(mixed_BSD + mixed_at, mixed.to(value.dtype), inside)


@triton.jit(do_not_specialize=["rows"])
def _backward_kernel(
    heads_3BHSd, grad_BSD, grads_3BHSd, seed, rows, heads,
    kind_stride, row_stride, head_stride, position_stride,
    grads_kind_stride, grads_row_stride, grads_head_stride, grads_position_stride, scale, drop,
    LENGTH: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, TILE: tl.constexpr,
    CAUSAL: tl.constexpr, DROPS: tl.constexpr,
):  # fmt: skip
    row, head, position, element, inside = _tile(rows, heads, LENGTH, WIDTH, TILE, PADDED)
    at = row * row_stride + head * head_stride + position * position_stride + element
    query, key, value = _load_heads(heads_3BHSd + at, kind_stride, inside)
    mixed_at = ((row * LENGTH + position) * heads + head) * WIDTH + element
    grad_mixed = tl.load(grad_BSD + mixed_at, inside, 0.0)

    weights = _weights(query, key, scale, LENGTH, TILE, CAUSAL)
    dropped = weights
    grad_weights = tl.dot(grad_mixed, tl.trans(value), input_precision="ieee")
    if DROPS:
        factors = _dropout_factors(seed, drop, TILE)
        dropped *= factors
        grad_weights *= factors
    grad_scores = weights * (grad_weights - tl.sum(weights * grad_weights, 1)[:, None]) * scale
    grad_scores = grad_scores.to(query.dtype)
    grad_query = tl.dot(grad_scores, key, input_precision="ieee")
    grad_key = tl.dot(tl.trans(grad_scores), query, input_precision="ieee")
    grad_value = tl.dot(tl.trans(dropped.to(value.dtype)), grad_mixed, input_precision="ieee")

    grads_at = row * grads_row_stride + head * grads_head_stride
    grads_at += position * grads_position_stride + element
    query_at = grads_3BHSd + grads_at
    key_at = query_at + grads_kind_stride
    tl.store(query_at, grad_query.to(query.dtype), inside)
    tl.store(key_at, grad_key.to(query.dtype), inside)
    tl.store(key_at + grads_kind_stride, grad_value.to(query.dtype), inside)
