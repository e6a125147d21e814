"""The one attention of every transformer here, with its cache and its 2-D rotary embedding.

Decided here: the fused `scaled_dot_product_attention`, but on a CPU two plain products where that
is slower, on a GPU a kernel of our own for short sequences, and one step of compiled code in place
of each; the key-value cache is an argument that a sampler owns, never a state of the module.

Shapes: B rows, S positions of this call, H heads, d elements a head, D = H · d.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fractal_model.model.kernels.attend import _attend_short, _is_short, attend
from fractal_model.model.kernels.dropout import Dropout
from fractal_model.model.kernels.linear import Linear
from fractal_model.model.rotary import rotate


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
