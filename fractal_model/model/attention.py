"""Multi-head self-attention with a fused qkv projection, as in every transformer here.

Decided here: the key-value cache is an argument that a sampler owns, never a state of the module;
how the attention itself is computed on a processor is in `kernels/attend.py`.

Shapes: B rows, S positions of this call, H heads, d elements a head, D = H · d.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fractal_model.model.kernels.attend import attend, attend_to_all
from fractal_model.model.kernels.dropout import Dropout
from fractal_model.model.kernels.linear import Linear
from fractal_model.model.rotary import rotate


class Attention(nn.Module):
    """softmax(Q Kᵀ / √d) V for each head, between two linear maps."""

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
        """(B, S, D) to (B, S, D); `rotary` holds the factors of the S positions. With a cache
        these come after the positions that are already in it."""
        heads = self.project_heads(x_BSD)
        if cache is None:
            drop = self.weight_dropout if self.training else 0.0
            return self._output(attend_to_all(heads, rotary, causal=self.causal, drop=drop))
        query, key, value = heads
        if rotary is not None:
            query, key = rotate(heads[:2], rotary)
        return self._project(cache.attend(query, key, value))

    def cache_shape(self, rows: int, capacity: int) -> tuple[int, int, int, int]:
        """(B, H, capacity, d) of the keys in a cache, and of the values."""
        return rows, self.heads, capacity, self.width // self.heads

    def project_heads(self, x_BSD: Tensor) -> Tensor:
        """Queries, keys and values: (3, B, H, S, d)."""
        return self._by_head(self.qkv(x_BSD), 3)

    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The output (B, Q, D) of queries (B, H, Q, d) that attend to all S positions: without a
        causal mask, rotation, or dropout."""
        assert not (self.causal or self.training)
        return self._project(attend(query, key, value))

    def of_queries(self, queries_BQD: Tensor, x_BSD: Tensor) -> Tensor:
        """The output (B, Q, D) of the positions whose inputs are `queries_BQD`; they attend to all
        S positions as in `mix`."""
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


@dataclass
class KeyValueCache:
    """Keys and values of the positions that one causal attention has seen; grows in place."""

    keys: Tensor
    """(B, H, capacity, d)"""
    values: Tensor
    length: int = 0

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The mixed values (B, H, S, d) of S new positions, which are stored; more than one of
        them is legal only when the cache is empty."""
        count, end = key.shape[2], self.length + key.shape[2]
        assert count == 1 or self.length == 0
        self.keys[:, :, self.length : end] = key
        self.values[:, :, self.length : end] = value
        self.length = end
        return attend(query, self.keys[:, :, :end], self.values[:, :, :end], causal=count > 1)


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

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The mixed values (B, H, 1, d) of one new position, which is stored."""
        self.keys.index_copy_(2, self.place, key)
        self.values.index_copy_(2, self.place, value)
        scores: Tensor = (query * self.keys).sum(-1) * query.shape[-1] ** -0.5
        later = torch.arange(self.keys.shape[2], device=query.device) > self.place
        weights = scores.masked_fill(later, -torch.inf).softmax(-1)
        return (weights[..., None] * self.values).sum(2, keepdim=True)
