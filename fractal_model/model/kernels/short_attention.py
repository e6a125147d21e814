"""Attention of short sequences on a GPU, as one Triton kernel each way.

Decided here: the rows that fit share one tile, in which a position sees those of its own row
alone. torch's fused kernels take 64 queries by 128 keys at a time, of which the 22 positions of a
lower level fill little, and the three of a pixel hardly any. A tile's weights are few: they are
computed again on the way back, and none is kept. A row that is not finite spoils its neighbours
too: a loss that is not finite was lost before.

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
"""Side of the smallest matrices that a GPU's tensor cores multiply."""


class _Context(Protocol):
    saved_tensors: tuple[Tensor, Tensor]
    save_for_backward: Callable[[Tensor, Tensor], None]
    causal: bool
    drop: float


def short_attention(heads_3BHSd: Tensor, *, causal: bool, drop: float) -> Tensor:
    """The mixed values (B, S, D) of queries, keys and values, whose elements lie side by side;
    `drop`, under 1, is the rate at which weights are dropped. S and d up to 32 and 128 are meant:
    larger ones take more registers than there are."""
    device = heads_3BHSd.device
    if drop:
        seed = torch.randint(2**62, (1,), dtype=torch.int64, device=device)
    else:
        seed = torch.zeros(1, dtype=torch.int64, device=device)
    mixed_BSD: Tensor = _mixed(heads_3BHSd, seed, causal, drop)
    return mixed_BSD


@torch.library.custom_op("fractal::short_attention", mutates_args=())
def _mixed(heads_3BHSd: Tensor, seed: Tensor, causal: bool, drop: float) -> Tensor:
    mixed_BSD: Tensor = _like_mixed(heads_3BHSd)
    _launch(_forward, heads_3BHSd, mixed_BSD, seed, causal=causal, drop=drop)
    return mixed_BSD


@torch.library.custom_op("fractal::short_attention_backward", mutates_args=())
def _gradients(
    heads_3BHSd: Tensor, grad_BSD: Tensor, seed: Tensor, causal: bool, drop: float
) -> Tensor:
    grads_3BHSd: Tensor = _like_heads(heads_3BHSd)
    _launch(
        _backward, heads_3BHSd, grad_BSD.contiguous(), seed, grads_3BHSd, causal=causal, drop=drop
    )
    return grads_3BHSd


@_mixed.register_fake
def _like_mixed(heads_3BHSd: Tensor, *_: object) -> Tensor:
    _kinds, rows, heads, length, width = heads_3BHSd.shape
    return heads_3BHSd.new_empty(rows, length, heads * width)


@_gradients.register_fake
def _like_heads(heads_3BHSd: Tensor, *_: object) -> Tensor:
    """Laid out as the product that made the heads wrote them: its gradient then copies nothing."""
    kinds, rows, heads, length, width = heads_3BHSd.shape
    return heads_3BHSd.new_empty(rows, length, kinds, heads, width).permute(2, 0, 3, 1, 4)


def _keep(ctx: _Context, inputs: tuple[Tensor, Tensor, bool, float], output: Tensor) -> None:
    heads_3BHSd, seed, ctx.causal, ctx.drop = inputs
    ctx.save_for_backward(heads_3BHSd, seed)


def _way_back(ctx: _Context, grad_BSD: Tensor) -> tuple[Tensor, None, None, None]:
    heads_3BHSd, seed = ctx.saved_tensors
    return _gradients(heads_3BHSd, grad_BSD, seed, ctx.causal, ctx.drop), None, None, None


_mixed.register_autograd(_way_back, setup_context=_keep)


def _flops(products: int, heads_3BHSd: torch.Size, *_: object, **also: object) -> int:
    """Operations of so many products of (S, d) and (d, S), or (S, S) and (S, d), matrices."""
    _kinds, rows, heads, length, width = heads_3BHSd
    return products * 2 * rows * heads * length**2 * width


register_flop_formula(torch.ops.fractal.short_attention)(partial(_flops, 2))
# The scores again, and two for each product on the way there.
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
    with torch.cuda.device_of(heads_3BHSd):  # Triton starts a kernel on the current GPU
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
            num_warps=1 if heads_3BHSd.dtype.itemsize == 2 else 4,  # no tensor cores, more work
        )


@triton.jit
def _places(
    rows, heads, LENGTH: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, PADDED: tl.constexpr
):
    """A program's tile: its rows, head and positions (T, 1), elements (1, d), and which of them
    exist."""
    together: tl.constexpr = TILE // LENGTH
    place = tl.arange(0, TILE)[:, None]
    element = tl.arange(0, PADDED)[None, :]
    row = (tl.program_id(0) // heads).to(tl.int64) * together + place // LENGTH
    inside = (place < together * LENGTH) & (row < rows) & (element < WIDTH)
    return row, tl.program_id(0) % heads, place % LENGTH, element, inside


@triton.jit
def _heads(query_at, kind_stride, inside):
    """Queries, keys and values, each (T, d). The pointers are added one after the other, for
    twice the stride may exceed the stride's own type."""
    key_at = query_at + kind_stride
    value_at = key_at + kind_stride
    query, key = tl.load(query_at, inside, 0.0), tl.load(key_at, inside, 0.0)
    return query, key, tl.load(value_at, inside, 0.0)


@triton.jit
def _weights(query, key, scale, LENGTH: tl.constexpr, TILE: tl.constexpr, CAUSAL: tl.constexpr):
    """The attention weights of a tile, (T, T) float32."""
    place = tl.arange(0, TILE)
    sees = (place // LENGTH)[:, None] == (place // LENGTH)[None, :]
    if CAUSAL:
        sees = sees & (place[:, None] >= place[None, :])
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
    scores = tl.where(sees, scores, float("-inf"))
    raised = tl.exp(scores - tl.max(scores, 1)[:, None])
    return raised / tl.sum(raised, 1)[:, None]


@triton.jit
def _growth(seed, drop, TILE: tl.constexpr):
    """(T, T) factors of the weights: zero where a weight is dropped."""
    place = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    quarter = tl.arange(0, TILE // 4)
    a, b, c, d = tl.rand4x(tl.load(seed), place[:, None] * (TILE // 4) + quarter[None, :])
    drawn = tl.reshape(tl.join(tl.join(a, b), tl.join(c, d)), (TILE, TILE))
    return tl.where(drawn >= drop, 1 / (1 - drop), 0.0)


@triton.jit(do_not_specialize=["rows"])
def _forward(
    heads_3BHSd, mixed_BSD, seed, rows, heads,
    kind_stride, row_stride, head_stride, position_stride, scale, drop,
    LENGTH: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, TILE: tl.constexpr,
    CAUSAL: tl.constexpr, DROPS: tl.constexpr,
):  # fmt: skip
    row, head, position, element, inside = _places(rows, heads, LENGTH, WIDTH, TILE, PADDED)
    at = row * row_stride + head * head_stride + position * position_stride + element
    query, key, value = _heads(heads_3BHSd + at, kind_stride, inside)
    weights = _weights(query, key, scale, LENGTH, TILE, CAUSAL)
    if DROPS:
        weights *= _growth(seed, drop, TILE)
    mixed = tl.dot(weights.to(value.dtype), value, input_precision="ieee")
    mixed_at = ((row * LENGTH + position) * heads + head) * WIDTH + element
    tl.store(mixed_BSD + mixed_at, mixed.to(value.dtype), inside)


@triton.jit(do_not_specialize=["rows"])
def _backward(
    heads_3BHSd, grad_BSD, grads_3BHSd, seed, rows, heads,
    kind_stride, row_stride, head_stride, position_stride,
    grads_kind_stride, grads_row_stride, grads_head_stride, grads_position_stride, scale, drop,
    LENGTH: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, TILE: tl.constexpr,
    CAUSAL: tl.constexpr, DROPS: tl.constexpr,
):  # fmt: skip
    row, head, position, element, inside = _places(rows, heads, LENGTH, WIDTH, TILE, PADDED)
    at = row * row_stride + head * head_stride + position * position_stride + element
    query, key, value = _heads(heads_3BHSd + at, kind_stride, inside)
    mixed_at = ((row * LENGTH + position) * heads + head) * WIDTH + element
    of_mixed = tl.load(grad_BSD + mixed_at, inside, 0.0)

    weights = _weights(query, key, scale, LENGTH, TILE, CAUSAL)
    used = weights
    of_weights = tl.dot(of_mixed, tl.trans(value), input_precision="ieee")
    if DROPS:
        growth = _growth(seed, drop, TILE)
        used *= growth
        of_weights *= growth
    of_scores = weights * (of_weights - tl.sum(weights * of_weights, 1)[:, None]) * scale
    of_scores = of_scores.to(query.dtype)
    of_query = tl.dot(of_scores, key, input_precision="ieee")
    of_key = tl.dot(tl.trans(of_scores), query, input_precision="ieee")
    of_value = tl.dot(tl.trans(used.to(value.dtype)), of_mixed, input_precision="ieee")

    grads_at = row * grads_row_stride + head * grads_head_stride
    grads_at += position * grads_position_stride + element
    query_at = grads_3BHSd + grads_at
    key_at = query_at + grads_kind_stride
    tl.store(query_at, of_query.to(query.dtype), inside)
    tl.store(key_at, of_key.to(query.dtype), inside)
    tl.store(key_at + grads_kind_stride, of_value.to(query.dtype), inside)
