"""The two pre-norm transformer blocks and their feed-forward parts.

AR levels have LLaMA's block (RMSNorm, SwiGLU); MAR levels and pixel networks have the vision
transformer's (LayerNorm, MLP). A block can be recomputed on the way back, or compiled.

Shapes: B rows, S positions, D width, H hidden width of a feed-forward part.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fractal_model.model.attention import Attention, FixedCache, KeyValueCache
from fractal_model.model.kernels.dropout import Dropout
from fractal_model.model.kernels.linear import Linear

NORM_EPSILON = 1e-6
SWIGLU_MULTIPLE = 256
_MOST_KINDS = 64
"""Of compiled blocks: by width, heads and length, in training and not, with gradients and without.
torch would give up after eight, and a model of three levels with guiding pixels trains six."""


class GeluMLP(nn.Module):
    """Two linear maps with biases and exact GELU between them; dropout after each. BSD to BSD."""

    def __init__(self, width: int, hidden: int, *, dropout: float) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.drop1 = Dropout(dropout)
        self.fc2 = Linear(hidden, width)
        self.drop2 = Dropout(dropout)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.drop2(self.fc2(self.drop1(self.fc1(x_BSD, "gelu"))))


class SwiGLU(nn.Module):
    """fc2(silu(fc1_g(x)) * fc1_x(x)) without biases, then dropout (Shazeer 2020, section 2)."""

    def __init__(self, width: int, hidden: int, *, dropout: float) -> None:
        super().__init__()
        self.fc1_g = Linear(width, hidden, bias=False)
        self.fc1_x = Linear(width, hidden, bias=False)
        self.fc2 = Linear(hidden, width, bias=False)
        self.drop = Dropout(dropout)

    def forward(self, x_BSD: Tensor) -> Tensor:
        gate_BSH = nn.functional.silu(self.fc1_g(x_BSD))
        return self.drop(self.fc2(gate_BSH * self.fc1_x(x_BSD)))


class Block(nn.Module):
    """x + attention(norm1(x)), then x + feed_forward(norm2(x))."""

    def __init__(
        self,
        norm1: nn.LayerNorm | nn.RMSNorm,
        attention: Attention,
        norm2: nn.LayerNorm | nn.RMSNorm,
        feed_forward: GeluMLP | SwiGLU,
    ) -> None:
        super().__init__()
        self.recompute = False
        self.norm1 = norm1
        self.attention = attention
        self.norm2 = norm2
        self.feed_forward = feed_forward

    def forward(
        self,
        x_BSD: Tensor,
        *,
        rotary: Tensor | None = None,
        cache: KeyValueCache | FixedCache | None = None,
    ) -> Tensor:
        x_BSD = x_BSD + self.attention(self.norm1(x_BSD), rotary=rotary, cache=cache)
        return self._feed_forward(x_BSD)

    def at(self, x_BSD: Tensor, positions_BQ: Tensor) -> Tensor:
        """The output (B, Q, D) of these positions alone; for a last block without a causal mask."""
        index = positions_BQ[..., None].expand(-1, -1, x_BSD.shape[-1])
        normed = self.norm1(x_BSD)
        mixed = self.attention.of_queries(normed.gather(1, index), normed)
        return self._feed_forward(x_BSD.gather(1, index) + mixed)

    def mix(self, x_BQD: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The output (B, Q, D) where queries (B, H, Q, d), keys and values are known already."""
        return self._feed_forward(x_BQD + self.attention.mix(query, key, value))

    def _feed_forward(self, x_BSD: Tensor) -> Tensor:
        change: Tensor = self.feed_forward(self.norm2(x_BSD))
        return x_BSD + change


def vit_block(width: int, heads: int, *, causal: bool, dropout: float) -> Block:
    """Pre-norm ViT block: biases, MLP ratio 4, exact GELU; dropout also on attention weights."""
    return Block(
        nn.LayerNorm(width, eps=NORM_EPSILON),
        Attention(
            width=width,
            heads=heads,
            bias=True,
            causal=causal,
            weight_dropout=dropout,
            output_dropout=dropout,
        ),
        nn.LayerNorm(width, eps=NORM_EPSILON),
        GeluMLP(width, 4 * width, dropout=dropout),
    )


def ar_block(width: int, heads: int, dropout: float) -> Block:
    """The AR level's block: RMSNorm, causal attention without biases, SwiGLU."""
    hidden = math.ceil((8 * width // 3) / SWIGLU_MULTIPLE) * SWIGLU_MULTIPLE
    return Block(
        nn.RMSNorm(width, eps=1e-5),
        Attention(width=width, heads=heads, bias=False, causal=True, output_dropout=dropout),
        nn.RMSNorm(width, eps=1e-5),
        SwiGLU(width, hidden, dropout=dropout),
    )


def run_blocks(
    blocks: Sequence[Block],
    x_BSD: Tensor,
    *,
    rotary: Tensor | None = None,
    caches: Sequence[KeyValueCache | FixedCache] | None = None,
    at_BQ: Tensor | None = None,
) -> Tensor:
    """Apply the blocks in turn, each with its own cache where caches are given. With `at_BQ` the
    last block computes the output (B, Q, D) of these positions alone."""
    assert at_BQ is None or (rotary is None and caches is None)
    for i, block in enumerate(blocks):
        if at_BQ is not None and i == len(blocks) - 1:
            x_BSD = block.at(x_BSD, at_BQ)
        elif block.recompute and torch.is_grad_enabled():
            x_BSD = checkpoint(block, x_BSD, rotary=rotary, use_reentrant=False)
        else:
            x_BSD = block(x_BSD, rotary=rotary, cache=caches[i] if caches is not None else None)
    return x_BSD


def empty_caches(blocks: Sequence[Block], capacity: int, token_BD: Tensor) -> list[KeyValueCache]:
    """A cache for each block, for as many rows as there are tokens and `capacity` positions."""
    shapes = [block.attention.cache_shape(len(token_BD), capacity) for block in blocks]
    return [KeyValueCache(token_BD.new_empty(s), token_BD.new_empty(s)) for s in shapes]


def checkpoint_activations(model: nn.Module) -> None:
    """Keep the input of each block alone in training and compute the rest again on the way back."""
    for module in model.modules():
        if isinstance(module, Block):
            module.recompute = True


def compile_blocks(model: nn.Module) -> None:
    """Compile each block into one function, for any number of rows."""
    for module in model.modules():
        if isinstance(module, Block):
            module.compile(dynamic=True, recompile_limit=_MOST_KINDS)
