"""The two pre-norm transformer blocks and their feed-forward parts.

AR levels use LLaMA's block (RMSNorm, SwiGLU). MAR levels and pixel networks use the vision
transformer's block (LayerNorm, MLP). A block can be recomputed in the backward pass, or compiled.

Shapes: B rows, S positions, Q query positions if these are fewer, D width, F hidden width of a
feed-forward part, H heads, d elements of a head.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from fractal_model.config.training import Checkpointing
from fractal_model.model.attention import Attention, Cache, KeyValueCache
from fractal_model.model.kernels.dropout import Dropout
from fractal_model.model.kernels.linear import Linear

NORM_EPSILON = 1e-6
SWIGLU_MULTIPLE = 256
"""The hidden width of SwiGLU is rounded up to a multiple of this, as in LLaMA."""
KEPT = (
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::baddbmm",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "fractal::short_attention",
    "mkldnn::_linear_pointwise",
)
"""Operations whose results selective checkpointing always keeps: products, and some attention."""
KEPT_WITHOUT_DROPOUT = (
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
)
"""Fused attention of a GPU, whose results are kept too if it has no dropout. With dropout it draws
random numbers itself. If it were not computed again, all dropout after it would draw others."""
_RECOMPILE_LIMIT = 64
"""Largest number of variants of a block that a process compiles. Each combination of width, heads,
length, mode and gradients is a variant. torch's own limit of 8 is close: training a model of three
levels with guiding pixels takes 6."""


class GeluMLP(nn.Module):
    """Two linear maps with biases, exact GELU between them, and dropout after each."""

    def __init__(self, width: int, hidden: int, *, dropout: float) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.drop1 = Dropout(dropout)
        self.fc2 = Linear(hidden, width)
        self.drop2 = Dropout(dropout)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.drop2(self.fc2(self.drop1(self.fc1(x_BSD, "gelu"))))


class SwiGLU(nn.Module):
    """SwiGLU without biases: dropout(fc2(silu(fc1_g(x)) · fc1_x(x))) (Shazeer 2020, section 2)."""

    def __init__(self, width: int, hidden: int, *, dropout: float) -> None:
        super().__init__()
        self.fc1_g = Linear(width, hidden, bias=False)
        self.fc1_x = Linear(width, hidden, bias=False)
        self.fc2 = Linear(hidden, width, bias=False)
        self.drop = Dropout(dropout)

    def forward(self, x_BSD: Tensor) -> Tensor:
        gate_BSF = nn.functional.silu(self.fc1_g(x_BSD))
        return self.drop(self.fc2(gate_BSF * self.fc1_x(x_BSD)))


class Block(nn.Module):
    """A pre-norm block: x + attention(norm1(x)), then x + feed_forward(norm2(x))."""

    def __init__(
        self,
        norm1: nn.LayerNorm | nn.RMSNorm,
        attention: Attention,
        norm2: nn.LayerNorm | nn.RMSNorm,
        feed_forward: GeluMLP | SwiGLU,
    ) -> None:
        super().__init__()
        self.recompute: Checkpointing = False
        self.norm1 = norm1
        self.attention = attention
        self.norm2 = norm2
        self.feed_forward = feed_forward

    def forward(
        self, x_BSD: Tensor, *, rotary: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        if self.recompute == "selective" and torch.is_grad_enabled():
            # Within the block, so that code compiled from it keeps and computes again the same.
            keep = _keep_always if self.attention.weight_dropout else _keep_without_dropout
            return checkpoint(self._run, x_BSD, rotary, cache, use_reentrant=False, context_fn=keep)
        return self._run(x_BSD, rotary, cache)

    def _run(self, x_BSD: Tensor, rotary: Tensor | None, cache: Cache | None) -> Tensor:
        x_BSD = x_BSD + self.attention(self.norm1(x_BSD), rotary=rotary, cache=cache)
        return self._add_feed_forward(x_BSD)

    def output_at(self, x_BSD: Tensor, positions_BQ: Tensor) -> Tensor:
        """Return the block's output (B, Q, D) at `positions_BQ` only, without causal mask. Sampling
        uses this in a MAR level's last block, where the other outputs are not read."""
        index = positions_BQ[..., None].expand(-1, -1, x_BSD.shape[-1])
        normed = self.norm1(x_BSD)
        mixed = self.attention.attend_from(normed.gather(1, index), normed)
        return self._add_feed_forward(x_BSD.gather(1, index) + mixed)

    def mix(self, x_BQD: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the block's output (B, Q, D) from queries (B, H, Q, d), keys and values (B, H, S,
        d) that are already computed. `x_BQD` holds the block's inputs at the query positions."""
        return self._add_feed_forward(x_BQD + self.attention.mix(query, key, value))

    def _add_feed_forward(self, x_BSD: Tensor) -> Tensor:
        change: Tensor = self.feed_forward(self.norm2(x_BSD))
        return x_BSD + change


def vit_block(
    width: int, heads: int, *, causal: bool, dropout: float, qk_norm: bool = False
) -> Block:
    """Build a vision transformer's block: LayerNorm, attention with biases, and an MLP with GELU
    and a hidden width of 4 · `width`. `dropout` is the rate in the MLP and in the attention.
    `qk_norm`: see `Attention`."""
    return Block(
        nn.LayerNorm(width, eps=NORM_EPSILON),
        Attention(
            width=width,
            heads=heads,
            bias=True,
            causal=causal,
            qk_norm=qk_norm,
            weight_dropout=dropout,
            output_dropout=dropout,
        ),
        nn.LayerNorm(width, eps=NORM_EPSILON),
        GeluMLP(width, 4 * width, dropout=dropout),
    )


def ar_block(width: int, heads: int, dropout: float, *, qk_norm: bool = False) -> Block:
    """Build the block of an AR level: RMSNorm, causal attention without biases, SwiGLU. `qk_norm`:
    see `Attention`."""
    hidden = math.ceil((8 * width // 3) / SWIGLU_MULTIPLE) * SWIGLU_MULTIPLE
    return Block(
        nn.RMSNorm(width, eps=1e-5),
        Attention(
            width=width,
            heads=heads,
            bias=False,
            causal=True,
            qk_norm=qk_norm,
            output_dropout=dropout,
        ),
        nn.RMSNorm(width, eps=1e-5),
        SwiGLU(width, hidden, dropout=dropout),
    )


def run_blocks(
    blocks: Sequence[Block],
    x_BSD: Tensor,
    *,
    rotary: Tensor | None = None,
    caches: Sequence[Cache] | None = None,
    at_BQ: Tensor | None = None,
) -> Tensor:
    """Apply the blocks in turn and return the output of the last, (B, S, D). Block i uses
    `caches[i]` if there are caches. With `at_BQ` the last block computes only the positions with
    these numbers, and the result is (B, Q, D)."""
    assert at_BQ is None or (rotary is None and caches is None)
    for i, block in enumerate(blocks):
        if at_BQ is not None and i == len(blocks) - 1:
            x_BSD = block.output_at(x_BSD, at_BQ)
        elif block.recompute is True and torch.is_grad_enabled():
            x_BSD = checkpoint(block, x_BSD, rotary=rotary, use_reentrant=False)
        else:
            x_BSD = block(x_BSD, rotary=rotary, cache=caches[i] if caches is not None else None)
    return x_BSD


def empty_caches(blocks: Sequence[Block], capacity: int, token_BD: Tensor) -> list[KeyValueCache]:
    """Return an empty cache for each block, with room for `capacity` positions of B rows.
    `token_BD` is an input token: it tells the number of rows, the type and the device."""
    shapes = [block.attention.cache_shape(len(token_BD), capacity) for block in blocks]
    return [KeyValueCache(token_BD.new_empty(s), token_BD.new_empty(s)) for s in shapes]


def checkpoint_activations(model: nn.Module, recompute: Checkpointing = True) -> None:
    """Make the blocks of a model keep less for the backward pass, which computes the rest again:
    with True only their inputs, with `selective` also the results of products and attention."""
    for module in model.modules():
        if isinstance(module, Block):
            module.recompute = recompute


def _keep_if(names: frozenset[str]) -> Callable[..., CheckpointPolicy]:
    def choose(
        context: SelectiveCheckpointContext, operation: OpOverload, *_: object, **__: object
    ) -> CheckpointPolicy:
        is_kept = operation.name() in names
        return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE

    return choose


# torch compiles blocks only with a `partial` of its own function.
_keep_always = partial(create_selective_checkpoint_contexts, _keep_if(frozenset(KEPT)))
_keep_without_dropout = partial(
    create_selective_checkpoint_contexts, _keep_if(frozenset(KEPT + KEPT_WITHOUT_DROPOUT))
)


def compile_blocks(model: nn.Module) -> None:
    """Compile each block of a model with `torch.compile`, for batches of any number of rows."""
    for module in model.modules():
        if isinstance(module, Block):
            module.compile(dynamic=True, recompile_limit=_RECOMPILE_LIMIT)
