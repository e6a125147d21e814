"""Scaled dot-product attention, computed in the fastest way for each processor.

Decided here: torch's fused attention is the default. A CPU uses two plain products where these are
faster, and a GPU uses our own kernel for short sequences (`short_attention.py`). Many rows are
computed in several calls, to stay within a CPU's cache or the limits of a GPU's grid.

Shapes: B rows, Q queries, S positions, H heads, d elements a head, D = H · d.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from fractal_model.common.compiler import can_build_triton_kernels, constant_in_compiled_code
from fractal_model.model.kernels.dropout import dropout
from fractal_model.model.rotary import rotate

_MOST_SCORES = 2**21
"""Largest number of attention scores in one call of plain products. In float32 they take 8 MB,
which fits the cache of one or two cores."""
_FEW_SCORES = 2**15
"""Largest number of attention scores of a row for which float32 inference uses plain products, such
as 8 heads · 64 queries · 64 positions. Above it torch's fused attention is faster."""
_MOST_ROWS = 2**15
"""Largest number of rows in one call on a GPU. Fused kernels count rows in a grid dimension that
ends at 65,535, and 16 images of 64 × 64 have more pixels than that."""
_SHORT, _NARROW = 32, 128
"""Largest number of positions, and of elements of a head, for which the kernel for short sequences
is used. Larger ones need more registers than a GPU has."""
_HAS_TRITON = find_spec("triton") is not None and can_build_triton_kernels()


def attend_to_all(
    heads_3BHSd: Tensor, rotary: Tensor | None, *, causal: bool, drop: float
) -> Tensor:
    """Return the attention output (B, S, D) of S positions that attend to each other, from stacked
    queries, keys and values. With `causal` no position attends to a later one. `rotary` has the
    factors that rotate queries and keys; `drop` is the dropout rate of the attention weights."""
    if not _is_short(heads_3BHSd):
        query, key, value = heads_3BHSd
        if rotary is not None:
            query, key = rotate(heads_3BHSd[:2], rotary)
        return attend(query, key, value, causal=causal, drop=drop).transpose(1, 2).flatten(2)
    from fractal_model.model.kernels.short_attention import short_attention  # Imports Triton.

    if rotary is not None:
        heads_3BHSd = torch.cat([rotate(heads_3BHSd[:2], rotary), heads_3BHSd[2:]])
    return short_attention(heads_3BHSd, causal=causal, drop=drop)


def attend(
    query_BHQd: Tensor, key: Tensor, value: Tensor, *, causal: bool = False, drop: float = 0.0
) -> Tensor:
    """Return each head's attention output (B, H, Q, d) for queries (B, H, Q, d), keys and values
    (B, H, S, d). With `causal` query i attends to positions 0 … i; `drop` is the dropout rate."""
    on_cpu = query_BHQd.device.type == "cpu" and not torch.compiler.is_compiling()
    scores = query_BHQd.shape[1] * query_BHQd.shape[2] * key.shape[2]
    if on_cpu and _uses_products(query_BHQd, scores, drop):
        products = partial(_attend_by_products, causal=causal, drop=drop)
        rows = len(query_BHQd) if torch.is_grad_enabled() else max(1, _MOST_SCORES // scores)
        return _call_in_parts(products, rows, query_BHQd, key, value)
    fused = partial(F.scaled_dot_product_attention, dropout_p=drop, is_causal=causal)
    rows = len(query_BHQd) if on_cpu else _MOST_ROWS
    return _call_in_parts(fused, rows, query_BHQd, key, value)


def _is_short(heads_3BHSd: Tensor) -> bool:
    """True if the kernel for short sequences can compute the attention of these heads."""
    length, width = heads_3BHSd.shape[-2:]
    if not (heads_3BHSd.is_cuda and _HAS_TRITON and length <= _SHORT and width <= _NARROW):
        return False
    multiplies: bool = _multiplies_bfloat16(heads_3BHSd.device.index)
    return multiplies


@constant_in_compiled_code
def _multiplies_bfloat16(gpu: int) -> bool:
    """True if the GPU multiplies bfloat16 in its tensor cores (Ampere or newer)."""
    return torch.cuda.get_device_capability(gpu) >= (8, 0)


def _call_in_parts(function: Callable[..., Tensor], rows: int, *tensors: Tensor) -> Tensor:
    """Apply `function` to `tensors`, at most `rows` rows per call, and concatenate the results."""
    if len(tensors[0]) <= rows:
        return function(*tensors)
    parts = zip(*(x.split(rows) for x in tensors), strict=True)
    return torch.cat([function(*part) for part in parts])


def _uses_products(query_BHQd: Tensor, scores: int, drop: float) -> bool:
    """True if two plain matrix products are faster on a CPU than torch's fused attention. Fused
    attention is made for long sequences in float32 inference, and has no dropout. `scores` is the
    number of attention scores of a row."""
    if drop:
        return True
    if torch.is_grad_enabled() or query_BHQd.dtype == torch.bfloat16:
        return scores <= _MOST_SCORES
    return query_BHQd.shape[2] > 1 and scores <= _FEW_SCORES


def _attend_by_products(
    query_BHQd: Tensor, key: Tensor, value: Tensor, *, causal: bool, drop: float
) -> Tensor:
    query, key, value = (x.flatten(0, 1) for x in (query_BHQd, key, value))
    shape = query.shape[1], key.shape[1]
    later = query.new_full(shape, -torch.inf).triu(1) if causal else query.new_empty(())
    scale = query.shape[-1] ** -0.5
    scores = torch.baddbmm(later, query, key.mT, beta=int(causal), alpha=scale)
    return torch.bmm(dropout(scores.softmax(-1), drop), value).view(query_BHQd.shape)
