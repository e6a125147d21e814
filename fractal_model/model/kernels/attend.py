"""Scaled dot-product attention, computed in the way that is fastest on the processor at hand.

Decided here: torch's fused attention, but two plain products on a CPU where these are faster, and
our own kernel for short sequences on a GPU (`short_attention.py`). Rows are computed in parts where
all of them would leave the cache of a CPU or exceed a dimension of a GPU's grid.

Shapes: B rows, Q queries, S positions, H heads, d elements a head, D = H · d.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from fractal_model.common.compiler import can_build_triton_kernels
from fractal_model.model.kernels.dropout import dropout
from fractal_model.model.rotary import rotate

_MOST_SCORES = 2**21
"""Scores of plain products at a time: they stay in the cache of a core or two."""
_FEW_SCORES = 2**15
"""Scores of a row up to which plain products are faster in inference: 64 positions and 8 heads."""
_MOST_ROWS = 2**15
"""Rows at a time on a GPU, whose fused kernels count them in a grid's second or third dimension:
that ends at 65,535, and the pixels of 16 images of 64 × 64 are more."""
_SHORT, _NARROW = 32, 128
"""Positions, and elements of a head, up to which the kernel for short sequences is used."""
_HAS_TRITON = find_spec("triton") is not None and can_build_triton_kernels()


def attend_to_all(
    heads_3BHSd: Tensor, rotary: Tensor | None, *, causal: bool, drop: float
) -> Tensor:
    """The mixed values (B, S, D) of S positions that attend to each other, or with `causal` to the
    earlier ones. Queries and keys are rotated by `rotary`; weights are dropped at the rate `drop`.
    """
    if not _is_short(heads_3BHSd):
        query, key, value = heads_3BHSd
        if rotary is not None:
            query, key = rotate(heads_3BHSd[:2], rotary)
        return attend(query, key, value, causal=causal, drop=drop).transpose(1, 2).flatten(2)
    from fractal_model.model.kernels.short_attention import short_attention  # needs Triton

    if rotary is not None:
        heads_3BHSd = torch.cat([rotate(heads_3BHSd[:2], rotary), heads_3BHSd[2:]])
    return short_attention(heads_3BHSd, causal=causal, drop=drop)


def attend(
    query_BHQd: Tensor, key: Tensor, value: Tensor, *, causal: bool = False, drop: float = 0.0
) -> Tensor:
    """The mixed values (B, H, Q, d) of keys and values (B, H, S, d); `drop` is the rate at which
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
    """True where the kernel for short sequences takes these heads."""
    length, width = heads_3BHSd.shape[-2:]
    if not (heads_3BHSd.is_cuda and _HAS_TRITON and length <= _SHORT and width <= _NARROW):
        return False
    multiplies: bool = _multiplies_bfloat16(heads_3BHSd.device.index)
    return multiplies


@torch.compiler.assume_constant_result
def _multiplies_bfloat16(gpu: int) -> bool:
    """True if the GPU multiplies bfloat16 in its tensor cores (Ampere or newer)."""
    return torch.cuda.get_device_capability(gpu) >= (8, 0)


def _in_parts(function: Callable[..., Tensor], rows: int, *tensors: Tensor) -> Tensor:
    """Apply `function` to at most `rows` rows per call and concatenate the results."""
    if len(tensors[0]) <= rows:
        return function(*tensors)
    parts = zip(*(x.split(rows) for x in tensors), strict=True)
    return torch.cat([function(*part) for part in parts])


def _by_products(query_BHQd: Tensor, scores: int, drop: float) -> bool:
    """True where two plain products a head are faster than the fused attention of a CPU, which is
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
    scale = query.shape[-1] ** -0.5
    scores = torch.baddbmm(later, query, key.mT, beta=int(causal), alpha=scale)
    return torch.bmm(dropout(scores.softmax(-1), drop), value).view(query_BHQd.shape)
