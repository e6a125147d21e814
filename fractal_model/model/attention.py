"""The one attention of every transformer here, with its cache and its 2-D rotary embedding.

Decided here: the fused `scaled_dot_product_attention`, but on a CPU two plain products where that
is slower, on a GPU a kernel of our own for short sequences, and one step of compiled code in place
of each; the key-value cache is an argument that a sampler owns, never a state of the module.

Shapes: B rows, S positions of this call, H heads, d elements a head, D = H · d.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fractal_model.common.compiler import triton_builds
from fractal_model.model.dropout import Dropout, dropout
from fractal_model.model.linear import Linear

_MOST_SCORES = 2**21
"""At a time: they stay in the cache of a core or two."""
_FEW_SCORES = 2**15
"""Of a row: up to 64 positions and 8 heads."""
_SHORT = 32
"""Positions."""
_NARROW = 128
"""Elements of a head."""
_HAS_TRITON = find_spec("triton") is not None and triton_builds()
_MOST_ROWS = 2**15
"""At a time on a GPU, whose fused kernels count them in a grid's second or third dimension: that
ends at 65,535, and the pixels of 16 images of 64 × 64 are more."""


@dataclass
class KeyValueCache:
    """Keys and values of the positions seen so far, for one attention; grows in place."""

    keys: Tensor
    """(B, H, capacity, d)"""
    values: Tensor
    length: int = 0

    @classmethod
    def empty(cls, attention: Attention, rows: int, capacity: int, like: Tensor) -> KeyValueCache:
        shape = (rows, attention.heads, capacity, attention.width // attention.heads)
        return cls(keys=like.new_empty(shape), values=like.new_empty(shape))

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, H, S, d) new keys and values; return all that are valid."""
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


@dataclass
class FixedCache:
    """Keys and values of all positions there will be, for one position at a time: its shapes never
    change, so that a step can be compiled once. Scores are plain products and sums: for one query
    a compiler fuses them into one loop."""

    keys: Tensor
    """(B, H, capacity, d)"""
    values: Tensor
    place: Tensor
    """(1,) int64: the position at hand."""

    @staticmethod
    def zeros(
        attention: Attention, rows: int, capacity: int, like: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of an attention that has seen nothing."""
        shape = (rows, attention.heads, capacity, attention.width // attention.heads)
        return like.new_zeros(shape), like.new_zeros(shape)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The mixed values (B, H, 1, d) of one new position, which is stored."""
        self.keys.index_copy_(2, self.place, key)
        self.values.index_copy_(2, self.place, value)
        scores = (query * self.keys).sum(-1) * query.shape[-1] ** -0.5
        later = torch.arange(self.keys.shape[2], device=query.device) > self.place
        weights = scores.masked_fill(later, -torch.inf).softmax(-1)
        return (weights[..., None] * self.values).sum(2, keepdim=True)


class Attention(nn.Module):
    """Multi-head self-attention with a fused qkv projection."""

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        bias: bool,
        causal: bool,
        weight_dropout: float = 0.0,
        output_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.width = width
        self.heads = heads
        self.causal = causal
        self.weight_dropout = weight_dropout
        self.qkv = Linear(width, 3 * width, bias=bias)
        self.projection = Linear(width, width, bias=bias)
        self.output_dropout = Dropout(output_dropout)

    def forward(
        self,
        x_BSD: Tensor,
        *,
        rotary: Tensor | None = None,
        cache: KeyValueCache | FixedCache | None = None,
    ) -> Tensor:
        """(B, S, D) to (B, S, D).

        With a cache, the S positions come after those already in it; more than one new position
        is only legal when it is empty. `rotary` holds the factors of the S positions.
        """
        length = x_BSD.shape[1]
        heads = self.project_heads(x_BSD)
        rate = self.weight_dropout if self.training else 0.0
        if cache is None and _is_short(heads):
            return self._output(_attend_short(heads, rotary, causal=self.causal, drop=rate))
        query, key, value = heads
        if rotary is not None:
            query, key = rotate(heads[:2], rotary)
        if isinstance(cache, FixedCache):
            return self._project(cache.attend(query, key, value))
        if cache is not None:
            assert length == 1 or cache.length == 0
            key, value = cache.append(key, value)
        causal = self.causal and (cache is None or length > 1)
        mixed = attend(query, key, value, causal=causal, drop=rate)
        return self._project(mixed)

    def project_heads(self, x_BSD: Tensor) -> Tensor:
        """Queries, keys and values: (3, B, H, S, d)."""
        return self._by_head(self.qkv(x_BSD), 3)

    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The output (B, Q, D) of queries (B, H, Q, d) that attend to all S positions: without a
        causal mask, rotation, or dropout."""
        assert not (self.causal or self.training)
        return self._project(attend(query, key, value))

    def of_queries(self, queries_BQD: Tensor, x_BSD: Tensor) -> Tensor:
        """The same of the positions whose inputs are given as queries."""
        of_query = self.qkv.part(queries_BQD, slice(self.width))
        of_all = self.qkv.part(x_BSD, slice(self.width, None))
        (query,), (key, value) = self._by_head(of_query, 1), self._by_head(of_all, 2)
        return self.mix(query, key, value)

    def _by_head(self, x: Tensor, kinds: int) -> Tensor:
        """(B, S, kinds · D) to (kinds, B, H, S, d)."""
        rows, length, _ = x.shape
        return x.view(rows, length, kinds, self.heads, -1).permute(2, 0, 3, 1, 4)

    def _project(self, mixed_BHSd: Tensor) -> Tensor:
        return self._output(mixed_BHSd.transpose(1, 2).flatten(2))

    def _output(self, mixed_BSD: Tensor) -> Tensor:
        return self.output_dropout(self.projection(mixed_BSD))


def attend(
    query_BHQd: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = False,
    drop: float = 0.0,
) -> Tensor:
    """The mixed values, (B, H, Q, d), of keys and values (B, H, S, d); `drop` is the rate at which
    weights are dropped."""
    on_cpu = query_BHQd.device.type == "cpu" and not torch.compiler.is_compiling()
    scores = query_BHQd.shape[1] * query_BHQd.shape[2] * key.shape[2]
    if on_cpu and _by_products(query_BHQd, scores, drop):
        products = partial(_products, causal=causal, drop=drop)
        rows = len(query_BHQd) if torch.is_grad_enabled() else max(1, _MOST_SCORES // scores)
        return _in_parts(products, rows, query_BHQd, key, value)
    fused = partial(F.scaled_dot_product_attention, dropout_p=drop, is_causal=causal)
    return _in_parts(fused, len(query_BHQd) if on_cpu else _MOST_ROWS, query_BHQd, key, value)


def _is_short(heads_3BHSd: Tensor) -> bool:
    """Whether it is for the kernel of short sequences."""
    length, width = heads_3BHSd.shape[-2:]
    if not (heads_3BHSd.is_cuda and _HAS_TRITON and length <= _SHORT and width <= _NARROW):
        return False
    return _multiplies_bfloat16(heads_3BHSd.device.index)


@torch.compiler.assume_constant_result
def _multiplies_bfloat16(gpu: int) -> bool:
    """Whether its tensor cores do, which began with Ampere."""
    return torch.cuda.get_device_capability(gpu) >= (8, 0)


def _attend_short(
    heads_3BHSd: Tensor, rotary: Tensor | None, *, causal: bool, drop: float
) -> Tensor:
    from fractal_model.model.short_attention import short_attention  # Triton is there on a GPU

    if rotary is not None:
        heads_3BHSd = torch.cat([rotate(heads_3BHSd[:2], rotary), heads_3BHSd[2:]])
    return short_attention(heads_3BHSd, causal=causal, drop=drop)


def _in_parts(function: Callable[..., Tensor], rows: int, *tensors: Tensor) -> Tensor:
    """So many rows at a time."""
    if len(tensors[0]) <= rows:
        return function(*tensors)
    parts = zip(*(x.split(rows) for x in tensors), strict=True)
    return torch.cat([function(*part) for part in parts])


def _by_products(query_BHQd: Tensor, scores: int, drop: float) -> bool:
    """Whether two plain products a head are faster than the fused attention of a CPU, which is
    made for long sequences, float32 and inference, and has no dropout."""
    if drop:
        return True
    if torch.is_grad_enabled() or query_BHQd.dtype == torch.bfloat16:
        return scores <= _MOST_SCORES
    return query_BHQd.shape[2] > 1 and scores <= _FEW_SCORES


def _products(
    query_BHQd: Tensor, key: Tensor, value: Tensor, *, causal: bool, drop: float
) -> Tensor:
    query, key, value = (x.flatten(0, 1) for x in (query_BHQd, key, value))
    places = query.shape[1], key.shape[1]
    later = query.new_full(places, -torch.inf).triu(1) if causal else query.new_empty(())
    how = {"beta": int(causal), "alpha": query.shape[-1] ** -0.5}
    scores = torch.baddbmm(later, query, key.mT, **how)
    return torch.bmm(dropout(scores.softmax(-1), drop), value).view(query_BHQd.shape)


def rotary_factors(grid: int, head_width: int) -> Tensor:
    """Cosines and sines of the AR level's positions, (T + 1, d/2, 2), T = grid².

    The first d/4 pairs of neighbouring elements turn with the row of the sub-patch, the next d/4
    with its column. Position 0 is the condition token; its factors are zero, so its query and key
    vanish: this is how the published weights were trained.
    """
    frequency = 10000.0 ** (-2 * torch.arange(head_width // 4) / (head_width / 2))
    position = torch.arange(grid, dtype=torch.float32)
    angle = position[:, None] * frequency
    rows = angle[:, None, :].expand(grid, grid, -1)
    columns = angle[None, :, :].expand(grid, grid, -1)
    angles = torch.cat([rows, columns], dim=-1).reshape(grid * grid, head_width // 2)
    factors = torch.stack([angles.cos(), angles.sin()], dim=-1)
    return torch.cat([torch.zeros_like(factors[:1]), factors])


def rotate(x: Tensor, factors: Tensor) -> Tensor:
    """Turn the pairs of (…, S, d) by (S, d/2, 2) factors, in float32, result in x's dtype."""
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # torch's compiler leaves complex numbers alone
        (even, odd), (cosine, sine) = pairs.unbind(-1), factors.unbind(-1)
        turned = torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1)
    else:
        product = torch.view_as_complex(pairs) * torch.view_as_complex(factors.float())
        turned = torch.view_as_real(product)
    return turned.flatten(-2).to(x.dtype)
