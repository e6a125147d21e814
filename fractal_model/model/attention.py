"""Multi-head self-attention with a fused qkv projection, used by every transformer of the model.

Decided here: the key-value cache is an argument that the sampler owns, never a state of the module.
`kernels/attend.py` decides how a processor computes the attention itself.

Shapes: B rows, S positions in one call, Q of them as queries, H heads of d elements, D = H · d.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fractal_model.model.kernels.attend import attend, attend_to_all
from fractal_model.model.kernels.dropout import Dropout
from fractal_model.model.kernels.linear import Linear
from fractal_model.model.rotary import rotate


class HeadNorm(nn.RMSNorm):
    """RMS norm of the d elements of each head, with a scale for each element that all heads share.
    It computes in float32 and returns the type of its input."""

    def __init__(self, head_width: int) -> None:
        super().__init__(head_width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


class Attention(nn.Module):
    """Self-attention softmax(query · keyᵀ / √d) · value in each head, between two linear maps. With
    `qk_norm` queries and keys are normalised before they are rotated or cached."""

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        bias: bool,
        causal: bool,
        qk_norm: bool = False,
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
        self.query_norm = HeadNorm(width // heads) if qk_norm else None
        self.key_norm = HeadNorm(width // heads) if qk_norm else None

    def forward(
        self, x_BSD: Tensor, *, rotary: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        """Return the attention output (B, S, D). `rotary` holds the rotation factors of the S
        positions; None rotates nothing. With `cache` the S positions follow the cached ones."""
        heads = self.project_heads(x_BSD)
        if cache is None:
            drop = self.weight_dropout if self.training else 0.0
            return self._project(attend_to_all(heads, rotary, causal=self.causal, drop=drop))
        query, key, value = heads
        if rotary is not None:
            query, key = rotate(heads[:2], rotary)
        return self._merge_heads(cache.attend(query, key, value))

    def cache_shape(self, rows: int, capacity: int) -> tuple[int, int, int, int]:
        """Return the shape (B, H, capacity, d) that keys and values each have in a cache."""
        return rows, self.heads, capacity, self.width // self.heads

    def project_heads(self, x_BSD: Tensor) -> Tensor:
        """Compute stacked queries, keys and values (3, B, H, S, d) from the inputs (B, S, D)."""
        return self._split_heads(self.qkv(x_BSD), self.query_norm, self.key_norm, None)

    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the attention output (B, Q, D) from computed queries (B, H, Q, d), keys and values
        (B, H, S, d). In evaluation mode only, without causal mask or rotation."""
        assert not (self.causal or self.training)
        return self._merge_heads(attend(query, key, value))

    def attend_from(self, queries_BQD: Tensor, x_BSD: Tensor) -> Tensor:
        """Return the attention output (B, Q, D) of Q positions that attend to all S positions. The
        inputs of the Q positions are `queries_BQD`, those of all positions `x_BSD`. In evaluation
        mode only, without causal mask."""
        query_BQD = self.qkv.part(queries_BQD, slice(self.width))
        key_value = self.qkv.part(x_BSD, slice(self.width, None))
        (query,) = self._split_heads(query_BQD, self.query_norm)
        key, value = self._split_heads(key_value, self.key_norm, None)
        return self.mix(query, key, value)

    def _split_heads(self, x: Tensor, *norms: HeadNorm | None) -> Tensor:
        """Split x (B, S, n · D) into heads, (n, B, H, S, d). There is one entry of `norms` for each
        of the n parts, such as queries, keys and values; None leaves its part as it is."""
        rows, length, _ = x.shape
        x = x.view(rows, length, len(norms), self.heads, -1)
        if any(norm is not None for norm in norms):
            parts = zip(x.unbind(2), norms, strict=True)
            # In the layout of the qkv product, so that the attention's output needs no copy.
            x = torch.stack([part if norm is None else norm(part) for part, norm in parts], dim=2)
        return x.permute(2, 0, 3, 1, 4)

    def _merge_heads(self, mixed_BHSd: Tensor) -> Tensor:
        return self._project(mixed_BHSd.transpose(1, 2).flatten(2))

    def _project(self, mixed_BSD: Tensor) -> Tensor:
        return self.output_dropout(self.projection(mixed_BSD))


@dataclass
class KeyValueCache:
    """Keys and values of the positions that one causal attention module has read so far."""

    keys: Tensor
    """Buffer of the keys, (B, H, capacity, d); the values have the same shape."""
    values: Tensor
    length: int = 0
    """Number of positions that are filled."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store the keys and values of S new positions, and return the attention output of these
        positions in each head, (B, H, S, d). S may be above 1 only while the cache is empty."""
        count, end = key.shape[2], self.length + key.shape[2]
        assert count == 1 or self.length == 0
        self.keys[:, :, self.length : end] = key
        self.values[:, :, self.length : end] = value
        self.length = end
        return attend(query, self.keys[:, :, :end], self.values[:, :, :end], causal=count > 1)

    def keep_rows(self, count: int) -> KeyValueCache:
        """Return a cache of the first `count` rows, which shares the memory of this one."""
        return KeyValueCache(self.keys[:count], self.values[:count], self.length)


@dataclass
class FixedCache:
    """A key-value cache of constant shape, so that a sampling step is compiled once. Attention
    scores are sums of element-wise products, because a compiler fuses these into one loop."""

    keys: Tensor
    """Buffer of the keys, (B, H, capacity, d); the values have the same shape."""
    values: Tensor
    position: Tensor
    """Number of the position that is computed next, (1,) int64."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store the key and value of one position, and return the attention output of this position
        in each head, (B, H, 1, d)."""
        self.keys.index_copy_(2, self.position, key)
        self.values.index_copy_(2, self.position, value)
        scores: Tensor = (query * self.keys).sum(-1) * query.shape[-1] ** -0.5
        later = torch.arange(self.keys.shape[2], device=query.device) > self.position
        weights = scores.masked_fill(later, -torch.inf).softmax(-1)
        return (weights[..., None] * self.values).sum(2, keepdim=True)


Cache = KeyValueCache | FixedCache
